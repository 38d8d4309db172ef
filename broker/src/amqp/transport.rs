//! What AMQP travels on: TCP, or TLS over it. The client library is given connected streams and brings no TLS of its own.

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::io::{AsyncRead, AsyncWrite};
use futures_util::{Stream, TryFutureExt};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

/// The runtime that the client library runs on: Tokio's, with our streams.
pub(super) type Kit = RuntimeParts<Tokio, Net>;

/// The one of this call's own Tokio runtime.
pub(super) fn runtime() -> Runtime<Kit> {
    Runtime::new(RuntimeParts::new(Tokio::current(), Net { tokio: Tokio::current() }))
}

/// A connected stream, encrypted or not.
pub(super) type Wire = Compat<Box<dyn Io>>;

/// What can be read and written.
pub(super) trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Io for T {}

/// A connection to one of the addresses.
pub(super) async fn connect(addresses: impl ToSocketAddrs) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addresses).await?;
    // Without it a small frame waits for the broker's delayed acknowledgement of the one before it.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// `stream` as it is.
fn plain(stream: TcpStream) -> Wire {
    let stream: Box<dyn Io> = Box::new(stream);
    stream.compat()
}

/// `stream`, encrypted for `host` where there is a `tls`.
pub(super) async fn wrap(stream: TcpStream, tls: Option<&Tls>, host: &str) -> io::Result<Wire> {
    let Some(tls) = tls else { return Ok(plain(stream)) };
    let name = ServerName::try_from(host.to_owned());
    let name = name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let stream: Box<dyn Io> = Box::new(tls.0.connect(name, stream).await?);
    Ok(stream.compat())
}

/// Whom to trust.
#[derive(Clone)]
pub(super) struct Tls(TlsConnector);

impl Tls {
    /// The usual authorities, and those whose certificates are in the PEM file `more`.
    pub(super) fn trusting(more: Option<&Path>) -> Result<Self, String> {
        let mut roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        if let Some(file) = more {
            let unreadable = |error| format!("{} cannot be read: {error}", file.display());
            let found = CertificateDer::pem_file_iter(file).map_err(unreadable)?;
            let found = found.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
            if found.is_empty() {
                return Err(format!("{} holds no certificate in PEM form", file.display()));
            }
            for certificate in found {
                let refused = |error| format!("{} holds a certificate that is none: {error}", file.display());
                roots.add(certificate).map_err(refused)?;
            }
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }
}

/// Tokio's reactor, but for its streams.
#[derive(Clone, Debug)]
pub(super) struct Net {
    tokio: Tokio,
}

impl Reactor for Net {
    type TcpStream = Wire;
    type Sleep = <Tokio as Reactor>::Sleep;

    /// Nobody asks for it.
    fn register<H: io::Read + io::Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Wire, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.tokio.sleep(duration)
    }

    fn interval(&self, period: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.tokio.interval(period)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        connect(address).map_ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::{Amqp, Config};
    use rcgen::{CertificateParams, KeyPair};
    use std::io::Write;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio::time::timeout;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;

    const BOUND: Duration = Duration::from_secs(20);

    /// A certificate of 127.0.0.1 in a file, and a server's settings with it.
    fn certificate() -> (tempfile::NamedTempFile, ServerConfig) {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(certificate.pem().as_bytes()).unwrap();
        let secret = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], secret)
            .unwrap();
        (file, config)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn amqps_greets_whom_it_trusts_and_nobody_else() {
        let (file, server) = certificate();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let greeted = tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(server));
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // Whoever does not trust us breaks the handshake off.
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut greeting = [0; 8];
                stream.read_exact(&mut greeting).await.unwrap();
                return greeting;
            }
        });
        let open = |ca_file| {
            let mut config = Config::new(format!("amqps://guest:guest@{address}/%2f").into());
            (config.ca_file, config.connect_timeout) = (ca_file, Duration::from_secs(5));
            Amqp::open(config)
        };
        let stranger = open(None).await.err().unwrap().to_string();
        assert!(stranger.contains("certificate"), "{stranger}");
        // It hangs up instead of an answer, as nothing behind it speaks AMQP.
        let trusted = open(Some(file.path().to_owned())).await.err().unwrap().to_string();
        assert!(!trusted.contains("certificate"), "{trusted}");
        assert_eq!(&timeout(BOUND, greeted).await.unwrap().unwrap(), b"AMQP\0\0\x09\x01");
    }
}

//! Reading on when a request is refused before all of its body has arrived.
//!
//! A server that answers and closes while its caller still sends makes the caller's next write fail, and many callers
//! then never read the answer: they see a broken pipe in place of the reason.

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Most bytes read on for the sake of the answer; a caller with more to send has it cut off.
const BYTES_MAX: usize = 256 << 20;
/// How long, for the same.
const TIME_MAX: Duration = Duration::from_secs(5);

/// Reads what the handler left unread of the body, and throws it away, before the answer is sent.
pub(super) async fn read_on(request: Request, next: Next) -> Response {
    // One who asks first gets the answer in place of the go-ahead.
    if request.headers().contains_key(header::EXPECT) || request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (sender, mut unread) = oneshot::channel();
    let lent = |body| Body::new(Lent { body, unread: Some(sender) });
    let response = next.run(request.map(lent)).await;
    if let Ok(rest) = unread.try_recv() {
        // Its end, an error and the limit come to the same: nothing more can be done for the caller.
        let _ = timeout(TIME_MAX, discard(rest)).await;
    }
    response
}

async fn discard(mut body: Body) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > BYTES_MAX {
            return;
        }
    }
}

/// A body that comes back when it is dropped before its end.
struct Lent {
    body: Body,
    unread: Option<oneshot::Sender<Body>>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.body.is_end_stream()
            && let Some(unread) = self.unread.take()
        {
            // Nobody waits for it once the answer is on its way.
            let _ = unread.send(std::mem::take(&mut self.body));
        }
    }
}

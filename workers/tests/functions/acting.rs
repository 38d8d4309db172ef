//! Functions in plain, blocking code: what they do is in the event, or in the way they are started.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, ExitCode};
use std::sync::mpsc;

/// A response, whole.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// One HTTP request on a connection of its own.
pub(crate) fn http(
    api: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect(api)?;
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {api}\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(&[head.as_bytes(), b"\r\n", body].concat())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let end =
        bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let header =
        |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    Ok(Response {
        status,
        headers: head.lines().filter_map(header).collect(),
        body: bytes[end + 4..].to_vec(),
    })
}

/// A function's life.
#[expect(clippy::zombie_processes, reason = "whether children that nobody waits for end is the question")]
pub(crate) fn function(start: &str) -> ExitCode {
    let api = std::env::var("AWS_LAMBDA_RUNTIME_API").unwrap();
    let post = |path: &str, body: &[u8]| http(&api, "POST", &format!("/2018-06-01/runtime{path}"), &[], body);
    match start {
        "crash" => {
            eprintln!("no module named torch");
            return ExitCode::from(3);
        }
        "init_error" => {
            let report =
                json!({"errorType": "Runtime.ImportModuleError", "errorMessage": "no module named torch"});
            post("/init/error", report.to_string().as_bytes()).unwrap();
            return ExitCode::from(1);
        }
        "never_asks" => hang(),
        _ => {}
    }
    loop {
        let Ok(next) = http(&api, "GET", "/2018-06-01/runtime/invocation/next", &[], b"") else {
            return ExitCode::SUCCESS;
        };
        let id = &next.headers["lambda-runtime-aws-request-id"];
        let event = next.json();
        let answer = match event["do"].as_str().unwrap_or("echo") {
            "crash" => {
                eprintln!("segfault, nearly");
                std::process::abort();
            }
            "hang" => hang(),
            "ask_again" => continue,
            "leave_child" => {
                let child = Command::new("sleep").arg("600").spawn().unwrap();
                json!({ "pid": std::process::id(), "child": child.id() })
            }
            "hold_child" => {
                let child = Command::new("sleep").arg("600").spawn().unwrap();
                println!("child {}", child.id());
                std::fs::write(
                    event["file"].as_str().unwrap(),
                    format!("{} {}", std::process::id(), child.id()),
                )
                .unwrap();
                hang()
            }
            "take" => {
                let bytes = usize::try_from(event["bytes"].as_u64().unwrap()).unwrap();
                json!({ "touched": vec![1u8; bytes].iter().map(|byte| u64::from(*byte)).sum::<u64>() })
            }
            "error" => {
                let report = json!({"errorType": "ValueError", "errorMessage": "not a digit", "stackTrace": ["a", "b"]});
                let reported =
                    post(&format!("/invocation/{id}/error"), report.to_string().as_bytes()).unwrap();
                assert_eq!(reported.status, 202);
                continue;
            }
            "large" => {
                let bytes = usize::try_from(event["bytes"].as_u64().unwrap()).unwrap();
                let refused = post(&format!("/invocation/{id}/response"), &vec![b'1'; bytes]).unwrap();
                assert_eq!(
                    (refused.status, &refused.json()["errorType"]),
                    (413, &json!("Function.ResponseSizeTooLarge"))
                );
                continue;
            }
            "other_id" => {
                let refused = post("/invocation/not-mine/response", b"{}").unwrap();
                json!({ "status": refused.status, "type": refused.json()["errorType"] })
            }
            "environment" => {
                let environment: BTreeMap<String, String> = std::env::vars().collect();
                json!({ "environment": environment, "limits": std::fs::read_to_string("/proc/self/limits").unwrap(),
                    "folder": std::env::current_dir().unwrap() })
            }
            _ => json!({ "pid": std::process::id(), "event": event, "headers": next.headers }),
        };
        let taken = post(&format!("/invocation/{id}/response"), answer.to_string().as_bytes()).unwrap();
        assert_eq!(taken.status, 202);
    }
}

fn hang() -> ! {
    let (_kept, never) = mpsc::channel::<()>();
    let _ = never.recv();
    unreachable!("nobody sends")
}

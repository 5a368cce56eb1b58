//! A client of a node's control API (docs/spec/api.md) that keeps everything the node said.
//!
//! Answers stay `serde_json::Value`: a judge that parsed them into the node's own types would share the node's mistakes. A missing field is an
//! error that names the field.

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, header};
use serde_json::Value;

use crate::DrillError;

/// Longer than any answer that the API promises (5 s for reads, 30 s for a waiting inbox), so that only a hung node meets it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// One node's control API.
#[derive(Clone)]
pub struct Api {
    client: reqwest::Client,
    base: String,
    token: String,
}

/// What a node answers instead of a result: `application/problem+json`.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// The stable, kebab-case name of the error.
    pub title: String,
    /// One sentence for people.
    pub detail: String,
    /// What to do next.
    pub hint: String,
    /// Machine-readable particulars, such as `{"have": 2, "need": 3}`; null if there are none.
    pub data: Value,
}

/// Why a request brought no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The node refused, and said why.
    #[error("{} (status {}): {}; hint: {}", .0.title, .0.status, .0.detail, .0.hint)]
    Problem(Box<Problem>),
    /// No answer: the node is dead, paused or hung.
    #[error("no answer to {request}: {reason}")]
    Unreachable {
        /// Method and path.
        request: String,
        /// What the HTTP client said.
        reason: String,
    },
    /// An answer that docs/spec/api.md does not allow.
    #[error("{request} was answered against the contract: {reason}")]
    Malformed {
        /// Method and path, or the field that was looked for.
        request: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ApiError {
    /// The problem that the node reported, if it reported one.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem(problem) => Some(problem),
            Self::Unreachable { .. } | Self::Malformed { .. } => None,
        }
    }
}

impl Api {
    /// Finds the API of the node that runs in `dir`, by the port file and the token file that it left there.
    ///
    /// # Errors
    /// The files cannot be read: the node is not up.
    pub fn of_directory(dir: &Path) -> Result<Self, DrillError> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).map(|text| text.trim().to_owned()).map_err(DrillError::io(format!("read {}", path.display())))
        };
        Self::new(&read("api.addr")?, &read("api.token")?)
    }

    /// A client for the API at `address` (`127.0.0.1:PORT`) that shows `token`. It ignores proxies: the API is on loopback only.
    ///
    /// # Errors
    /// The HTTP client cannot be set up.
    pub fn new(address: &str, token: &str) -> Result<Self, DrillError> {
        let client = reqwest::Client::builder().no_proxy().timeout(ANSWER_TIMEOUT).build();
        let client = client.map_err(|error| DrillError::Usage(format!("cannot set up the HTTP client: {error}")))?;
        Ok(Self { client, base: format!("http://{address}"), token: token.to_owned() })
    }

    /// GETs `path` (with its query, see [`query`] and [`path_segment`]).
    ///
    /// # Errors
    /// [`ApiError`]: refused, unreachable or malformed.
    pub async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.send(Method::GET, path, None).await
    }

    /// POSTs a JSON body.
    ///
    /// # Errors
    /// [`ApiError`]: refused, unreachable or malformed.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.send(Method::POST, path, Some(("application/json", body.to_string().into_bytes()))).await
    }

    /// POSTs plain bytes.
    ///
    /// # Errors
    /// [`ApiError`]: refused, unreachable or malformed.
    pub async fn post_bytes(&self, path: &str, body: Vec<u8>) -> Result<Value, ApiError> {
        self.send(Method::POST, path, Some(("application/octet-stream", body))).await
    }

    /// PUTs plain bytes.
    ///
    /// # Errors
    /// [`ApiError`]: refused, unreachable or malformed.
    pub async fn put_bytes(&self, path: &str, body: Vec<u8>) -> Result<Value, ApiError> {
        self.send(Method::PUT, path, Some(("application/octet-stream", body))).await
    }

    async fn send(&self, method: Method, path: &str, body: Option<(&'static str, Vec<u8>)>) -> Result<Value, ApiError> {
        let name = format!("{method} {path}");
        let unreachable = |error: reqwest::Error| ApiError::Unreachable { request: name.clone(), reason: causes(&error) };
        let mut request = self.client.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token);
        if let Some((kind, bytes)) = body {
            request = request.header(header::CONTENT_TYPE, kind).body(bytes);
        }
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(unreachable)?;
        let malformed = |reason: String| ApiError::Malformed { request: name.clone(), reason };
        let answer: Value = serde_json::from_slice(&bytes).map_err(|error| {
            malformed(format!("status {}, and no JSON ({error}): {}", status.as_u16(), String::from_utf8_lossy(&bytes)))
        })?;
        if status.is_success() {
            return Ok(answer);
        }
        let field = |key: &str| answer.get(key).and_then(Value::as_str).map(str::to_owned);
        let Some(title) = field("title") else { return Err(malformed(format!("status {} without a title: {answer}", status.as_u16()))) };
        Err(ApiError::Problem(Box::new(Problem {
            status: status.as_u16(),
            title,
            detail: field("detail").unwrap_or_default(),
            hint: field("hint").unwrap_or_default(),
            data: answer.get("data").cloned().unwrap_or(Value::Null),
        })))
    }
}

/// An error with everything that caused it: the outermost text of an HTTP client says little.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// `name` as one segment of a path: everything but unreserved characters percent-encoded, slashes too.
pub fn path_segment(name: &str) -> String {
    name.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

/// `?key=value&...` with percent-encoded values.
pub fn query(pairs: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (key, value) in pairs {
        out.push(if out.is_empty() { '?' } else { '&' });
        out.push_str(key);
        out.push('=');
        out.push_str(&path_segment(value));
    }
    out
}

/// The text at a JSON pointer.
///
/// # Errors
/// [`ApiError::Malformed`], naming the field.
pub fn text<'v>(value: &'v Value, pointer: &str) -> Result<&'v str, ApiError> {
    field(value, pointer, "a text", Value::as_str)
}

/// The whole number at a JSON pointer.
///
/// # Errors
/// [`ApiError::Malformed`], naming the field.
pub fn number(value: &Value, pointer: &str) -> Result<u64, ApiError> {
    field(value, pointer, "a whole number", Value::as_u64)
}

/// The number at a JSON pointer.
///
/// # Errors
/// [`ApiError::Malformed`], naming the field.
pub fn float(value: &Value, pointer: &str) -> Result<f64, ApiError> {
    field(value, pointer, "a number", Value::as_f64)
}

/// The truth value at a JSON pointer.
///
/// # Errors
/// [`ApiError::Malformed`], naming the field.
pub fn flag(value: &Value, pointer: &str) -> Result<bool, ApiError> {
    field(value, pointer, "true or false", Value::as_bool)
}

/// The list at a JSON pointer.
///
/// # Errors
/// [`ApiError::Malformed`], naming the field.
pub fn list<'v>(value: &'v Value, pointer: &str) -> Result<&'v [Value], ApiError> {
    field(value, pointer, "a list", |value| value.as_array().map(Vec::as_slice))
}

fn field<'v, T>(value: &'v Value, pointer: &str, kind: &str, read: impl FnOnce(&'v Value) -> Option<T>) -> Result<T, ApiError> {
    value.pointer(pointer).and_then(read).ok_or_else(|| {
        let shown: String = value.to_string().chars().take(400).collect();
        ApiError::Malformed { request: format!("the field {pointer}"), reason: format!("it should be {kind} in {shown}") }
    })
}

/// Bytes as the API writes them.
pub fn to_base64(bytes: &[u8]) -> String {
    data_encoding::BASE64.encode(bytes)
}

/// The bytes of a base64 field at a JSON pointer.
///
/// # Errors
/// [`ApiError::Malformed`], naming the field.
pub fn from_base64(value: &Value, pointer: &str) -> Result<Vec<u8>, ApiError> {
    data_encoding::BASE64
        .decode(text(value, pointer)?.as_bytes())
        .map_err(|error| ApiError::Malformed { request: format!("the field {pointer}"), reason: format!("it should be base64: {error}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A server that answers one request with `answer` and hands back what it was asked.
    async fn answer_once(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let read = stream.read(&mut buffer).await.unwrap();
                request.extend_from_slice(&buffer[..read]);
                let text = String::from_utf8_lossy(&request).to_lowercase();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
                if body.len() >= length {
                    break;
                }
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            String::from_utf8(request).unwrap()
        });
        (address, asked)
    }

    #[tokio::test]
    async fn shows_the_token_and_reads_the_answer() {
        let (address, asked) = answer_once("HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{\"ready\":true}").await;
        let api = Api::new(&address, "cafe").unwrap();
        let answer = api.put_bytes("/v1/agents/mira/sections/doc%2Fnotes?class=core", b"be kind".to_vec()).await.unwrap();
        assert!(flag(&answer, "/ready").unwrap());
        let asked = asked.await.unwrap();
        assert!(asked.starts_with("PUT /v1/agents/mira/sections/doc%2Fnotes?class=core HTTP/1.1\r\n"), "{asked}");
        assert!(asked.to_lowercase().contains("authorization: bearer cafe\r\n"), "{asked}");
        assert!(asked.ends_with("\r\n\r\nbe kind"), "{asked}");
    }

    #[tokio::test]
    async fn a_problem_keeps_its_title_and_its_data() {
        const PROBLEM: &str = "{\"title\":\"unavailable\",\"status\":503,\"detail\":\"d\",\"hint\":\"h\",\"data\":{\"have\":2,\"need\":3}}";
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\r\n{PROBLEM}",
            PROBLEM.len()
        );
        let (address, _asked) = answer_once(answer.leak()).await;
        let error = Api::new(&address, "cafe").unwrap().get("/v1/status").await.unwrap_err();
        let problem = error.problem().unwrap();
        assert_eq!((problem.status, problem.title.as_str()), (503, "unavailable"));
        assert_eq!(number(&problem.data, "/need").unwrap(), 3);
        assert_eq!(error.to_string(), "unavailable (status 503): d; hint: h");
    }

    #[tokio::test]
    async fn an_error_without_a_title_and_an_answer_without_json_are_named() {
        let (address, _asked) = answer_once("HTTP/1.1 500 Oops\r\ncontent-length: 2\r\n\r\n{}").await;
        let error = Api::new(&address, "cafe").unwrap().get("/v1/status").await.unwrap_err();
        assert!(matches!(&error, ApiError::Malformed { reason, .. } if reason.contains("without a title")), "{error}");
        let (address, _asked) = answer_once("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
        let error = Api::new(&address, "cafe").unwrap().get("/v1/status").await.unwrap_err();
        assert!(matches!(&error, ApiError::Malformed { reason, .. } if reason.contains("hello")), "{error}");
    }

    #[tokio::test]
    async fn a_dead_node_is_unreachable() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let error = Api::new(&address, "cafe").unwrap().get("/v1/status").await.unwrap_err();
        assert!(matches!(error, ApiError::Unreachable { .. }), "{error}");
    }

    #[test]
    fn paths_and_queries_are_percent_encoded() {
        assert_eq!(path_segment("relationship/did:key:z6Mk"), "relationship%2Fdid%3Akey%3Az6Mk");
        assert_eq!(query(&[("agent", "mira"), ("section", "doc/a b")]), "?agent=mira&section=doc%2Fa%20b");
        assert_eq!(query(&[]), "");
    }

    #[test]
    fn a_missing_field_is_named() {
        let answer = json!({"core": {"n": 10, "content": "AAE="}});
        assert_eq!(number(&answer, "/core/n").unwrap(), 10);
        assert_eq!(from_base64(&answer, "/core/content").unwrap(), [0, 1]);
        assert!(number(&answer, "/core/k").unwrap_err().to_string().contains("/core/k"));
        assert!(text(&answer, "/core/n").is_err() && flag(&answer, "/core").is_err() && list(&answer, "/core").is_err());
    }
}

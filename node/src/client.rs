//! The command line's way to a running node: HTTP on loopback, with the token of its state directory.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;

/// No verb waits longer for its answer than this.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A node that runs.
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
}

/// What went wrong, and what to do about it. [`crate::advice`] tells it.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct Failure {
    /// The stable name of the error.
    pub(crate) title: String,
    /// One sentence.
    pub(crate) detail: String,
    /// What to do next.
    pub(crate) hint: String,
    /// Numbers and the like.
    pub(crate) data: Value,
}

impl Failure {
    /// A failure of the command itself.
    pub(crate) fn new(title: &str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { title: title.into(), detail: detail.into(), hint: hint.into(), data: Value::Null }
    }
}

impl Client {
    /// Finds the node that runs on a state directory.
    pub(crate) fn of(dir: &Path) -> anyhow::Result<Self> {
        let Ok((address, token)) = crate::http::find(dir) else {
            let detail = format!("no node is running in {}", dir.display());
            return Err(
                Failure::new("no-node", detail, "start one with `persona up`, or name its directory with --dir or PERSONA_DIR").into()
            );
        };
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build().context("cannot set up HTTP")?;
        Ok(Self { http, base: format!("http://{address}"), token })
    }

    /// A request to be sent with [`Self::send`]. The path is appended as it is: escape its segments with [`segment`].
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    /// Sends a request, and reads the JSON answer or the problem.
    pub(crate) async fn send(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        let response = request.send().await.map_err(|error| {
            let hint = if error.is_timeout() {
                "the node is alive but busy; `persona status` tells"
            } else {
                "it may have been killed: start it again with `persona up`"
            };
            Failure::new("no-answer", format!("the node does not answer on {}: {error}", self.base), hint)
        })?;
        let status = response.status();
        let body: Value = response.json().await.unwrap_or(Value::Null);
        if status.is_success() {
            return Ok(body);
        }
        Err(problem(status, &body).into())
    }

    /// GET.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.send(self.request(Method::GET, path)).await
    }

    /// POST with a JSON body.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(self.request(Method::POST, path).json(body)).await
    }
}

fn problem(status: StatusCode, body: &Value) -> Failure {
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    if body["title"].is_string() {
        return Failure { title: text("title"), detail: text("detail"), hint: text("hint"), data: body["data"].clone() };
    }
    Failure::new("unexpected", format!("the node answered {status}"), "is the node of the same version as this command?")
}

/// A path segment or a query value, percent-encoded.
pub(crate) fn segment(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn segments_survive_slashes_and_colons() {
        assert_eq!(super::segment("doc/a b"), "doc%2Fa%20b");
        assert_eq!(super::segment("did:key:z6Mk"), "did%3Akey%3Az6Mk");
    }
}

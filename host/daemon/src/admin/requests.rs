//! Which request gets which answer.

use std::sync::Arc;
use std::time::Duration;

use axum::body::HttpBody;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tracing::info;

use super::Inspect;
use crate::view::{Peers, Problem, Released, SCHEMA};

/// **Bounds** time for one answer; after it the request ends with 504. A healthy daemon needs
/// milliseconds: its owners answer from memory.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// **Bounds** bytes of a name in a request. `namespace/name` of Kubernetes is at most 317.
const NAME_BYTES: usize = 512;

/// **Source** OpenMetrics 1.0, section "Content Type".
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Shared = State<Arc<dyn Inspect>>;

/// The whole API.
pub(super) fn api(inspect: Arc<dyn Inspect>) -> Router {
    let router = Router::new()
        .route("/v1/status", get(async |State(inspect): Shared| Json(inspect.status().await)))
        .route("/v1/peers", get(peers))
        .route("/v1/routes", get(async |State(inspect): Shared| Json(inspect.routes().await)))
        .route("/v1/ipam", get(async |State(inspect): Shared| Json(inspect.ipam().await)))
        .route("/v1/plugins", get(async |State(inspect): Shared| Json(inspect.plugins().await)))
        .route("/v1/explain", get(explain))
        .route("/v1/names/{name}/release", post(release_name))
        .route("/metrics", get(metrics));
    finish(router, inspect)
}

/// The metrics alone.
pub(super) fn metrics_only(inspect: Arc<dyn Inspect>) -> Router {
    finish(Router::new().route("/metrics", get(metrics)), inspect)
}

/// What somebody gets who may not ask.
pub(super) fn refusal() -> Router {
    Router::new().fallback(async || {
        problem(StatusCode::FORBIDDEN, "only root and the daemon's own user may use the admin socket; ask as root")
    })
}

fn finish(router: Router<Arc<dyn Inspect>>, inspect: Arc<dyn Inspect>) -> Router {
    router
        .fallback(async |request: Request| {
            problem(
                StatusCode::NOT_FOUND,
                format!("there is no {} here; is culvertctl as new as the daemon?", request.uri().path()),
            )
        })
        .method_not_allowed_fallback(async |request: Request| {
            problem(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{} does not go with {}", request.method(), request.uri().path()),
            )
        })
        .layer(from_fn(bounded))
        .with_state(inspect)
}

/// No request has a body, so the bound of a body is zero; and every answer has its time.
async fn bounded(request: Request, next: Next) -> Response {
    if !request.body().is_end_stream() {
        return problem(StatusCode::PAYLOAD_TOO_LARGE, "requests to the admin API have no body; send this one without");
    }
    match tokio::time::timeout(ANSWER_TIME, next.run(request)).await {
        Ok(response) => response,
        Err(_) => problem(
            StatusCode::GATEWAY_TIMEOUT,
            format!("the daemon found no answer within {} s; its log says what it is doing", ANSWER_TIME.as_secs()),
        ),
    }
}

fn problem(status: StatusCode, error: impl Into<String>) -> Response {
    (status, Json(Problem { error: error.into() })).into_response()
}

async fn peers(State(inspect): Shared) -> Json<Peers> {
    Json(Peers { schema: SCHEMA, peers: inspect.peers().await })
}

async fn metrics(State(inspect): Shared) -> Response {
    ([(header::CONTENT_TYPE, OPEN_METRICS)], inspect.metrics()).into_response()
}

/// Between which pods.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    from: String,
    to: String,
}

async fn explain(State(inspect): Shared, pair: Result<Query<Pair>, QueryRejection>) -> Response {
    let pair = match pair {
        Ok(Query(pair)) => pair,
        Err(rejection) => {
            let error = format!("write /v1/explain?from=POD&to=POD: {}", rejection.body_text());
            return problem(StatusCode::BAD_REQUEST, error);
        }
    };
    for name in [&pair.from, &pair.to] {
        if let Some(refusal) = unusable(name) {
            return refusal;
        }
    }
    match inspect.explain(&pair.from, &pair.to).await {
        Ok(explanation) => Json(explanation).into_response(),
        Err(error) => problem(StatusCode::NOT_FOUND, error),
    }
}

async fn release_name(State(inspect): Shared, name: Result<Path<String>, PathRejection>) -> Response {
    let name = match name {
        Ok(Path(name)) => name,
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    if let Some(refusal) = unusable(&name) {
        return refusal;
    }
    info!(%name, "an operator releases a node name");
    match inspect.release_name(&name).await {
        Ok(()) => Json(Released { schema: SCHEMA, name }).into_response(),
        Err(error) => problem(StatusCode::CONFLICT, error),
    }
}

/// The answer to a name that cannot be one.
fn unusable(name: &str) -> Option<Response> {
    let error = match name.len() {
        0 => "a name in the request is empty; write which pod or node is meant".to_owned(),
        length if length > NAME_BYTES => {
            format!("a name in the request has {length} bytes; at most {NAME_BYTES} can be one")
        }
        _ => return None,
    };
    Some(problem(StatusCode::BAD_REQUEST, error))
}

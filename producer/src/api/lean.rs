//! Makes requests that may be held for a minute small.

use actix_web::Error;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::HeaderMap;
use actix_web::middleware::Next;

use super::prefer::PREFER;

/// Keeps the headers of a request that waits in a table of their number: actix's own has room for 28, which is 7 KB.
pub async fn lean<B: MessageBody>(mut request: ServiceRequest, next: Next<B>) -> Result<ServiceResponse<B>, Error> {
    if request.headers().contains_key(PREFER) {
        let mut few = HeaderMap::new();
        for (name, value) in std::mem::take(request.headers_mut()) {
            few.append(name, value);
        }
        *request.headers_mut() = few;
    }
    next.call(request).await
}

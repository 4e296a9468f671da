//! What each operation asks of a key, from the table that requests are checked by.

use actix_web::http::Method;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, OpenApi, PathItem};
use utoipa::{IntoResponses, Modify};

use super::answers::{NoAccess, TooMuch};
use crate::api::access::{Access, access};
use crate::key::Scope;

const NAME: &str = "key";

/// Adds the scheme, and to each operation what it asks for and how it answers otherwise.
pub struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut OpenApi) {
        let description = "A key of `producer keys create`. The roles of an operation are scopes: a key with one of them, \
            or with `admin`, may use it.";
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(description)).build();
        let components = document.components.get_or_insert_with(Components::new);
        components.add_security_scheme(NAME, SecurityScheme::Http(scheme));
        for (path, item) in &mut document.paths.paths {
            for (method, operation) in operations(item) {
                if let Access::Needs(scope) = access(&method, path) {
                    ask(operation, scope);
                }
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    let PathItem { get, put, post, delete, patch, .. } = item;
    let all = [
        (Method::GET, get),
        (Method::PUT, put),
        (Method::POST, post),
        (Method::DELETE, delete),
        (Method::PATCH, patch),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

fn ask(operation: &mut Operation, scope: Scope) {
    operation.security = Some(vec![SecurityRequirement::new(NAME, [scope.name()])]);
    let needs = format!("Needs the scope `{scope}`.");
    let description = operation.description.take().map_or(needs.clone(), |said| format!("{said}\n\n{needs}"));
    operation.description = Some(description);
    for (status, answer) in NoAccess::responses().into_iter().chain(TooMuch::responses()) {
        operation.responses.responses.entry(status).or_insert(answer);
    }
}

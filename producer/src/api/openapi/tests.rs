//! The document against the routes and the code.

use std::collections::{BTreeMap, BTreeSet};

use actix_web::http::Method;
use actix_web::test::{TestRequest, call_service, init_service};
use actix_web::{App, web};
use serde_json::{Value, json};

use super::*;
use crate::api::access::{Access, TABLE, access};
use crate::api::{fields, routes};
use crate::key::Scope;

fn document() -> Value {
    serde_json::to_value(Document::openapi()).unwrap()
}

fn paths(document: &Value) -> BTreeMap<String, Value> {
    serde_json::from_value(document["paths"].clone()).unwrap()
}

/// The paths in the one place where routes are made.
fn routed() -> BTreeSet<String> {
    let source = include_str!("../../api.rs");
    let routed = source.split("web::resource(\"").skip(1).filter_map(|rest| rest.split('"').next());
    routed.map(str::to_owned).collect()
}

#[test]
fn every_route_is_documented_and_every_documented_path_is_a_route() {
    let routed = routed();
    assert!(routed.len() >= 5, "{routed:?}");
    assert_eq!(routed, paths(&document()).into_keys().collect());
}

#[actix_web::test]
async fn every_route_takes_the_methods_that_are_documented_and_no_other() {
    let app = init_service(App::new().configure(routes)).await;
    let paths = paths(&document());
    for (path, item) in &paths {
        let place = path.replace(['{', '}'], "");
        let answer = call_service(&app, TestRequest::with_uri(&place).method(Method::OPTIONS).to_request()).await;
        assert_eq!(answer.status(), 405, "{path}");
        let allowed = answer.headers().get("allow").unwrap().to_str().unwrap().to_lowercase();
        let allowed: BTreeSet<&str> = allowed.split(", ").filter(|method| *method != "head").collect();
        let documented = item.as_object().unwrap().keys();
        assert_eq!(allowed, documented.map(String::as_str).collect(), "{path}");
    }
}

#[test]
fn every_operation_asks_for_what_it_is_checked_for() {
    let document = document();
    let mut documented = BTreeSet::new();
    for (path, item) in paths(&document) {
        for (method, operation) in item.as_object().unwrap() {
            let asked = operation.get("security").map(|security| security[0]["key"][0].as_str().unwrap().to_owned());
            documented.insert((method.to_uppercase(), path.clone(), asked));
        }
    }
    let checked = TABLE.iter().map(|(method, path, access)| {
        let asked = match access {
            Access::Open => None,
            Access::Needs(scope) => Some(scope.name().to_owned()),
        };
        ((*method).to_owned(), (*path).to_owned(), asked)
    });
    assert_eq!(checked.collect::<BTreeSet<_>>(), documented);
    assert_eq!(document["components"]["securitySchemes"]["key"]["scheme"], "bearer");
}

#[test]
fn what_is_in_no_row_is_for_admin() {
    let asked = |method: Method, path| access(&method, path);
    assert_eq!(asked(Method::GET, "/v1/new"), Access::Needs(Scope::Admin));
    assert_eq!(asked(Method::PUT, "/v1/tasks"), Access::Needs(Scope::Admin));
    assert_eq!(asked(Method::GET, "/v1/tasks/a/b"), Access::Needs(Scope::Admin));
    assert_eq!(asked(Method::HEAD, "/v1/tasks/batch"), Access::Needs(Scope::Read));
    assert_eq!(asked(Method::POST, "/livez"), Access::Needs(Scope::Admin));
}

#[test]
fn every_reference_has_its_schema_and_every_schema_says_something() {
    let document = document();
    let text = document.to_string();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for reference in text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(schemas.contains_key(reference), "{reference}");
    }
    for (name, schema) in schemas {
        let says = ["type", "oneOf", "anyOf", "allOf", "description"].iter().any(|key| schema.get(key).is_some());
        assert!(says, "{name}: {schema}");
    }
}

#[test]
fn the_fields_of_a_submit_are_those_that_are_read() {
    let document = document();
    let properties = document["components"]["schemas"]["Submission"]["properties"].as_object().unwrap();
    let documented: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
    assert_eq!(documented, fields::KNOWN.into_iter().collect());
}

#[test]
fn every_answer_that_is_no_success_is_a_problem() {
    for (path, item) in paths(&document()) {
        for (method, operation) in item.as_object().unwrap() {
            for (status, answer) in operation["responses"].as_object().unwrap() {
                let is_problem = answer["content"].get("application/problem+json").is_some();
                let is_error = status.as_str() >= "400" && path != "/readyz";
                assert_eq!(is_problem, is_error, "{method} {path} {status}");
            }
        }
    }
}

#[actix_web::test]
async fn the_page_loads_nothing_from_elsewhere() {
    let rendered = web::Data::new(Rendered::new().unwrap());
    let app = init_service(App::new().app_data(rendered).configure(routes)).await;
    let page = call_service(&app, TestRequest::with_uri("/docs").to_request()).await;
    let policy = page.headers().get("content-security-policy").unwrap().to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; connect-src 'self'") && !policy.contains("unsafe"), "{policy}");
    let page = String::from_utf8(actix_web::test::read_body(page).await.to_vec()).unwrap();
    assert!(!page.contains("http:") && !page.contains("https:") && !page.contains("{nonce}"));
    println!("the page has {} bytes, the document {}", page.len(), document().to_string().len());
    let again = call_service(&app, TestRequest::with_uri("/openapi.json").to_request()).await;
    let served: Value = actix_web::test::read_body_json(again).await;
    assert_eq!((&served, &served["openapi"]), (&document(), &json!("3.1.0")));
}

//! The description of the API, made from the routes themselves.

use std::sync::LazyLock;

use axum::body::Bytes;
use utoipa::{
    PartialSchema,
    openapi::{
        ContentBuilder, InfoBuilder, OpenApi, Ref, ResponseBuilder,
        security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
    },
};

use super::{
    access::{self, Need},
    problem, routes,
};

/// The document.
pub fn document() -> OpenApi {
    let (_, mut document) = routes::described().split_for_parts();
    document.info = InfoBuilder::new()
        .title("runward")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "The control plane of runward, a daemon that supervises jobs. The unix socket admits the daemon's own user and root; \
             TCP needs the bearer token. Times are RFC 3339 UTC; durations are texts such as `30s`. Unknown fields, \
             duplicate keys and unknown query parameters are refused by name.",
        ))
        .build();
    let components = document.components.get_or_insert_default();
    components.schemas.insert("Problem".into(), problem::Problem::schema());
    components.schemas.insert("ProblemType".into(), problem::Kind::schema());
    components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    for (path, item) in &mut document.paths.paths {
        let operations = [
            ("GET", &mut item.get),
            ("POST", &mut item.post),
            ("PUT", &mut item.put),
            ("DELETE", &mut item.delete),
        ];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
            let response = ResponseBuilder::new()
                .description("Why it was not carried out")
                .content(problem::MEDIA_TYPE, content)
                .build();
            operation.responses.responses.insert("default".into(), response.into());
            let open = access::ROUTES
                .iter()
                .any(|(known, route, need)| known == method && route == path && *need == Need::Nothing);
            if !open {
                operation.security = Some(vec![SecurityRequirement::new("token", [""; 0])]);
            }
        }
    }
    document
}

/// The document as it is served.
pub(super) fn json() -> Bytes {
    static JSON: LazyLock<Bytes> = LazyLock::new(|| {
        // A tree of texts: it can't fail.
        document().to_json().unwrap_or_default().into()
    });
    JSON.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_described_and_has_its_need() {
        let document = serde_json::to_value(document()).expect("JSON");
        let mut described: Vec<(String, String)> = Vec::new();
        for (path, item) in document["paths"].as_object().expect("paths") {
            for method in item.as_object().expect("operations").keys() {
                described.push((method.to_ascii_uppercase(), path.clone()));
            }
        }
        let mut listed: Vec<_> =
            access::ROUTES.iter().map(|(method, path, _)| (method.to_string(), (*path).to_owned())).collect();
        described.sort();
        listed.sort();
        assert_eq!(described, listed);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = serde_json::to_value(document()).expect("JSON");
        let text = document.to_string();
        for part in text.split("\"$ref\":\"#").skip(1) {
            let pointer = part.split('"').next().expect("a pointer");
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }
}

//! The parameters of a query: each is taken out by its name, and every bad one is named.

use std::borrow::Cow;

use actix_web::web;

use super::problem::{ParameterError, Problem};

/// The most parameters that are looked at.
const MAX_PARAMETERS: usize = 100;

/// What is left of a query while its parameters are taken out, and what was wrong so far.
pub struct Parameters {
    left: Vec<(String, String)>,
    errors: Vec<ParameterError>,
}

impl Parameters {
    /// Reads a query.
    ///
    /// # Errors
    /// 400 for one with very many parameters.
    pub fn read(query: &str) -> Result<Self, Problem> {
        let query = web::Query::<Vec<(String, String)>>::from_query(query);
        let left = query.map(web::Query::into_inner).ok().filter(|left| left.len() <= MAX_PARAMETERS);
        let detail = || format!("must be at most {MAX_PARAMETERS} parameters, encoded as a form");
        let too_many = || Problem::parameters(vec![ParameterError { parameter: "?".to_owned(), detail: detail() }]);
        Ok(Self { left: left.ok_or_else(too_many)?, errors: Vec::new() })
    }

    /// Takes the parameter out; `None` when it is absent or bad.
    pub fn one<T>(&mut self, name: &str, check: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let mut given = self.all(name);
        let value = given.pop()?;
        let checked = if given.is_empty() { check(&value) } else { Err("is given twice".to_owned()) };
        checked.map_err(|detail| self.refuse(name, detail)).ok()
    }

    /// Takes a switch out: off when it is absent or bad.
    pub fn flag(&mut self, name: &str) -> bool {
        let value = |text: &str| text.parse::<bool>().map_err(|_| "must be true or false".to_owned());
        self.one(name, value).unwrap_or(false)
    }

    /// Takes out every value of a parameter that may be given several times.
    pub fn all(&mut self, name: &str) -> Vec<String> {
        self.left.extract_if(.., |(given, _)| given == name).map(|(_, value)| value).collect()
    }

    /// Keeps what is wrong with a parameter.
    pub fn refuse<'a>(&mut self, name: &str, detail: impl Into<Cow<'a, str>>) {
        self.errors.push(ParameterError { parameter: name.to_owned(), detail: detail.into().into_owned() });
    }

    /// A misspelled parameter must not be ignored in silence.
    ///
    /// # Errors
    /// 400 with every bad parameter.
    pub fn end(mut self) -> Result<(), Problem> {
        for (name, _) in std::mem::take(&mut self.left) {
            self.refuse(&name, "is not a parameter of this");
        }
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::parameters(self.errors)) }
    }
}

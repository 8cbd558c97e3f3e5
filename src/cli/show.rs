//! Printing an answer, whole.

use serde_json::Value;

use super::{
    error::{Code, Error},
    screen,
};

/// A text.
pub(super) fn print(text: &str) -> Result<u8, Error> {
    screen::print(text)
        .map_err(|error| Error::new(Code::Broken, format!("the output can't be written: {error}")))?;
    Ok(0)
}

/// What the API answered, on one line.
pub(super) fn json(value: &Value) -> Result<u8, Error> {
    print(&format!("{value}\n"))
}

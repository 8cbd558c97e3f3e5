//! Runner

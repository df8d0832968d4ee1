//! Kasmina.

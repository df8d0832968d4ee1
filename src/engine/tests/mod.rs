//! Tests of the engine over real graphs.

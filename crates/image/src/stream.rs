//! Push decoding of a forward-only stream.

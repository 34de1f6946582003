//! What a plain scalar is to Go's `goyaml.v2`. Its times stay text; it has no numbers to the base 60, so
//! that a MAC address needs no quotes.

use crate::Value;

/// What a plain scalar is besides text.
pub(super) fn plain(text: &str) -> Option<Value> {
    Some(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "<<" => Value::Merge,
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "true" | "True" | "TRUE" => {
            Value::Bool(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "false" | "False" | "FALSE" => {
            Value::Bool(false)
        }
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Value::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Value::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => Value::Float(f64::NAN),
        _ => return number(text),
    })
}

/// `strconv.ParseInt` of base 0 and of the text without `_`, then a float.
fn number(text: &str) -> Option<Value> {
    if !text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
        return None;
    }
    let plain = text.replace('_', "");
    integer(&plain).or_else(|| float(&plain))
}

fn integer(text: &str) -> Option<Value> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let prefix = |names: [&str; 2]| names.into_iter().find_map(|name| digits.strip_prefix(name));
    let (digits, radix) = if let Some(hex) = prefix(["0x", "0X"]) {
        (hex, 16)
    } else if let Some(binary) = prefix(["0b", "0B"]) {
        (binary, 2)
    } else if let Some(octal) = prefix(["0o", "0O"]) {
        (octal, 8)
    } else if let Some(octal) = digits.strip_prefix('0').filter(|rest| !rest.is_empty()) {
        (octal, 8)
    } else {
        (digits, 10)
    };
    // The parser of Rust would take another sign.
    let value = digits.starts_with(|c: char| c.is_digit(radix)).then_some(digits)?;
    let value = i128::from_str_radix(value, radix).ok()?;
    let value = if text.starts_with('-') { -value } else { value };
    let fits = (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(&value);
    fits.then_some(Value::Int(Some(value)))
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`.
fn float(text: &str) -> Option<Value> {
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match digits.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (digits, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let has_digits = !whole.is_empty() || !fraction.is_empty();
    let exponent = exponent.map(|text| text.strip_prefix(['+', '-']).unwrap_or(text));
    let is_exponent = exponent.is_none_or(|text| !text.is_empty() && is_digits(text));
    if !has_digits || !is_digits(whole) || !is_digits(fraction) || !is_exponent {
        return None;
    }
    text.parse().ok().map(Value::Float)
}

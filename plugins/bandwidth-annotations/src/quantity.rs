//! Kubernetes quantities as bits a second.
//!
//! **Source** Kubernetes, `apimachinery/pkg/api/resource/quantity.go`: a decimal number with one suffix, of 1024 (`Ki`
//! to `Ei`), of 1000 (`n`, `u`, `m`, none, `k`, `M` to `E`), or a decimal exponent (`e3`, `E3`); a fraction of a bit
//! is rounded up. `kubernetes/pkg/util/bandwidth`: from 1k to 1P.

/// **Units** bits/s. The least that the kubelet takes.
const LEAST: u128 = 1_000;

/// **Units** bits/s. The most that the kubelet takes.
const MOST: u128 = 1_000_000_000_000_000;

/// **Bounds** digits of a number. With the largest suffix the value still fits into 128 bits: 10^18 × 2^60 < 2^120.
const MOST_DIGITS: usize = 18;

/// **Bounds** the exponent after `e`; 1P is 1e15, and a smaller exponent than -18 makes every number less than 1k.
const LARGEST_EXPONENT: i32 = 18;

/// Why a text is no rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRate {
    /// It is no quantity.
    Malformed,
    /// It is less than 1k or more than 1P.
    OutOfRange,
}

impl std::fmt::Display for NoRate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Malformed => "no quantity such as 10M",
            Self::OutOfRange => "outside 1k to 1P bit/s",
        })
    }
}

/// A number and what it is multiplied with: `mantissa × base^exponent`, where base is 1024 or 10.
#[derive(Clone, Copy)]
struct Scale {
    base: u128,
    exponent: i32,
}

/// Reads a rate.
pub(crate) fn parse_bits_per_second(text: &str) -> Result<u64, NoRate> {
    let number_end = text.find(|byte: char| !byte.is_ascii_digit() && byte != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(number_end).ok_or(NoRate::Malformed)?;
    let (mantissa, decimals) = parse_number(number)?;
    let scale = parse_suffix(suffix)?;
    let value = scaled(mantissa, decimals, scale).ok_or(NoRate::OutOfRange)?;
    if !(LEAST..=MOST).contains(&value) {
        return Err(NoRate::OutOfRange);
    }
    u64::try_from(value).map_err(|_| NoRate::OutOfRange)
}

/// `12.50` as (1250, 2).
fn parse_number(number: &str) -> Result<(u128, u32), NoRate> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = whole.len() + fraction.len();
    if digits == 0 || digits > MOST_DIGITS || fraction.contains('.') {
        return Err(NoRate::Malformed);
    }
    let mantissa = whole.bytes().chain(fraction.bytes()).fold(0, |value, digit| value * 10 + u128::from(digit - b'0'));
    Ok((mantissa, fraction.len() as u32))
}

fn parse_suffix(suffix: &str) -> Result<Scale, NoRate> {
    let decimal = |exponent| Ok(Scale { base: 10, exponent });
    let binary = |exponent| Ok(Scale { base: 1_024, exponent });
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => decimal(parse_exponent(suffix)?),
    }
}

fn parse_exponent(suffix: &str) -> Result<i32, NoRate> {
    let exponent = suffix.strip_prefix(['e', 'E']).and_then(|digits| digits.parse().ok());
    match exponent {
        Some(exponent) if (-LARGEST_EXPONENT..=LARGEST_EXPONENT).contains(&exponent) => Ok(exponent),
        Some(_) | None => Err(NoRate::Malformed),
    }
}

/// `mantissa × 10^-decimals × base^exponent`, rounded up.
fn scaled(mantissa: u128, decimals: u32, scale: Scale) -> Option<u128> {
    let power = scale.base.checked_pow(scale.exponent.unsigned_abs())?;
    let fraction = 10_u128.checked_pow(decimals)?;
    if scale.exponent < 0 {
        Some(mantissa.div_ceil(fraction.checked_mul(power)?))
    } else {
        Some(mantissa.checked_mul(power)?.div_ceil(fraction))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suffix_means_what_it_means_in_kubernetes() {
        for (text, bits) in [
            ("1000", 1_000),
            ("512k", 512_000),
            ("10M", 10_000_000),
            ("1G", 1_000_000_000),
            ("2T", 2_000_000_000_000),
            ("1P", 1_000_000_000_000_000),
            ("1Ki", 1_024),
            ("10Mi", 10_485_760),
            ("1Gi", 1_073_741_824),
            ("1Ti", 1_099_511_627_776),
            ("0.5Pi", 562_949_953_421_312),
            ("0.0001Ei", 115_292_150_460_685),
            ("0.0001E", 100_000_000_000_000),
            ("1.5M", 1_500_000),
            (".5M", 500_000),
            ("5.M", 5_000_000),
            ("1e6", 1_000_000),
            ("12E3", 12_000),
            ("1e+6", 1_000_000),
            ("5000000e-3", 5_000),
            ("2000000m", 2_000),
            ("5000000000u", 5_000),
            ("7000000000000n", 7_000),
            ("1000.0001", 1_001),
            ("007M", 7_000_000),
        ] {
            assert_eq!(parse_bits_per_second(text), Ok(bits), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_malformed() {
        for text in [
            "",
            " ",
            "M",
            ".",
            ".M",
            "10 M",
            "10m ",
            "-10M",
            "+10M",
            "10K",
            "10MB",
            "10Mbps",
            "10Kib",
            "1.2.3M",
            "1e",
            "1e1.5",
            "1e19",
            "0x10",
            "ten",
            "１０M",
            "10µ",
            "1234567890123456789",
        ] {
            assert_eq!(parse_bits_per_second(text), Err(NoRate::Malformed), "{text}");
        }
    }

    #[test]
    fn what_the_kubelet_does_not_take_is_out_of_range() {
        for text in ["0", "0M", "999", "0.9k", "1n", "1e-18", "1001T", "1.1P", "1E", "1Pi", "999999999999999999Ei"] {
            assert_eq!(parse_bits_per_second(text), Err(NoRate::OutOfRange), "{text}");
        }
    }
}

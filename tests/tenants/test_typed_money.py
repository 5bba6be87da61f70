"""Money as typed is exact minor units, or refused with a sentence; never a guess."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants.currencies import MINOR_UNITS
from tenants.errors import InvalidValue
from tenants.hits import MAX_AMOUNT
from tenants.typed_money import read_money


@pytest.mark.parametrize(
    ("typed", "currency", "amount"),
    [
        ("12.34", "USD", 1234),
        ("12,34", "EUR", 1234),
        ("12", "USD", 1200),
        ("12.5", "USD", 1250),
        (".5", "USD", 50),
        ("0", "USD", 0),
        ("0012", "USD", 1200),
        ("0.29", "USD", 29),  # as a float 28.999999999999996 cents
        ("1,234.56", "USD", 123456),
        ("1.234,56", "EUR", 123456),
        ("1 234,56", "EUR", 123456),
        ("1\u00a0234,56", "EUR", 123456),
        ("1\u202f234\u202f567,8", "EUR", 123456780),
        ("1'234.56", "CHF", 123456),
        ("1’234.56", "CHF", 123456),
        ("1,23,456.78", "INR", 12345678),
        ("1,234,567", "USD", 123456700),
        ("1.234.567", "EUR", 123456700),
        ("1 234", "USD", 123400),
        ("1,234.00", "USD", 123400),
        ("¥500", "JPY", 500),
        ("¥1,234", "JPY", 1234),
        ("500.0", "JPY", 500),
        ("1.234,567", "KWD", 1234567),
        ("1.2340", "KWD", 1234),
        ("1.5", "CLF", 15000),
        ("$25", "USD", 2500),
        ("25 €", "EUR", 2500),
        ("EUR 25", "EUR", 2500),
        ("25 usd", "USD", 2500),
        (" 25.00 ", "USD", 2500),
        ("-25.00", "USD", -2500),
        ("−25.00", "USD", -2500),
        ("- 25", "USD", -2500),
        ("-$25", "USD", -2500),
        ("$-25", "USD", -2500),
        ("+25", "USD", 2500),
        ("12.3400", "USD", 1234),
        ("10000000000000", "USD", MAX_AMOUNT),
    ],
)
def test_an_amount_is_read_exactly(typed: str, currency: str, amount: int) -> None:
    assert read_money(typed, currency) == amount


@pytest.mark.parametrize(
    ("typed", "currency", "says"),
    [
        ("1,234", "USD", "could be read as 1234 or as 1.234. Write 1234 or 1.23."),
        ("1.234", "EUR", "could be read as 1234 or as 1.234"),
        ("-12.345", "EUR", "12345 or as 12.345"),
        ("1.234", "KWD", "Write 1234 or 1.2340."),
        ("123.450", "USD", "Write 123450 or 123.45."),
        ("123,456", "KWD", "Write 123456 or 123.4560."),
        ("1,234.567", "USD", "USD has 2 decimals"),
        ("0.123", "USD", "USD has 2 decimals"),
        ("1234,567", "USD", "USD has 2 decimals"),
        ("1.5", "JPY", "JPY has no decimals. Write 1234,"),
        ("1,234,56", "USD", "not clear"),
        ("12 34", "USD", "not clear"),
        ("1.2.3", "USD", "not clear"),
        ("1.234 567,8", "EUR", "not clear"),
        ("1,234'567.8", "EUR", "not clear"),
        ("", "USD", "in digits, such as 1234.56"),
        (".", "USD", "in digits"),
        ("12.", "USD", "in digits"),
        ("1e3", "USD", "in digits"),
        ("0x10", "USD", "in digits"),
        ("twelve", "USD", "in digits"),
        ("--5", "USD", "in digits"),
        ("-$-5", "USD", "in digits"),
        ("5-", "USD", "in digits"),
        ("١٢", "USD", "in digits"),
        ("\uff11\uff12", "USD", "in digits"),
        ("12\n34", "USD", "in digits"),
        ("NaN", "USD", "in digits"),
        ("9" * 5_000, "USD", "in digits"),
        ("25 EUR", "USD", "The amount is in EUR, but the currency is USD"),
        ("€25", "USD", "The amount is in €, but the currency is USD"),
        ("$25", "EUR", "The amount is in $"),
        ("10000000000000.01", "USD", "10^15"),
        ("9" * 40, "JPY", "10^15"),
    ],
)
def test_what_is_unclear_is_refused(typed: str, currency: str, says: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        read_money(typed, currency)
    assert refused.value.field == "amount"
    assert says in str(refused.value)


@given(st.integers(-MAX_AMOUNT, MAX_AMOUNT), st.sampled_from(sorted(MINOR_UNITS)), st.sampled_from(["", " ", "'", ","]))
def test_money_written_with_all_its_decimals_reads_back(amount: int, currency: str, group: str) -> None:
    digits = MINOR_UNITS[currency]
    whole, fraction = divmod(abs(amount), 10**digits)
    written = f"{whole:,}".replace(",", group) + (f".{fraction:0{digits}d}" if digits else "")
    if digits == 3 and written.count(".") and whole < 1000 and whole > 0:
        written += "0"  # three decimals alone could be thousands
    assert read_money(("-" if amount < 0 else "") + written, currency) == amount

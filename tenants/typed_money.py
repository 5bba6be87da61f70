"""Money as people type it becomes whole minor units, exactly, or a sentence about what to change.

Both a point and a comma separate decimals somewhere and thousands elsewhere. What only one reading fits is read;
what two readings fit is refused, since a thousandfold error in somebody's revenue is worse than a second look.
"""

import re

from tenants.currencies import MINOR_UNITS
from tenants.errors import InvalidValue
from tenants.hits import MAX_AMOUNT

# Signs that stand for few currencies: one beside another currency is a slip that nobody would see later.
_SIGNS = {
    "$": """USD USN AUD BBD BMD BND BSD BZD CAD FJD GYD HKD JMD KYD LRD NAD NZD SBD SGD SRD TTD TWD XCD XCG
            ARS BRL CLF CLP COP COU CUP CVE DOP MOP MXN MXV NIO TOP UYI UYU UYW WST""",
    "€": "EUR",
    "£": "GBP EGP FKP GIP LBP SDG SHP SSP SYP",
    "¥": "JPY CNY",
    "₹": "INR",
    "₩": "KRW KPW",
    "₽": "RUB",
    "₺": "TRY",
    "₴": "UAH",
    "₪": "ILS",
    "₫": "VND",
    "₦": "NGN",
    "฿": "THB",
}
_MAX_TYPED = 60  # twice what the largest amount takes, and little enough to show in a sentence
_SPACES = str.maketrans(dict.fromkeys("\u00a0\u2007\u2009\u202f\t", " ") | {"’": "'", "−": "-"})
_TYPED = re.compile(r"([-+]?) ?(\D*?) ?([-+]?) ?([0-9.,][0-9.,' ]*?) ?([^0-9.,' ]*)")
_GROUPS = re.compile(
    r"[0-9]{1,3}(?:(?P<sign>[.,' ])[0-9]{3}(?:(?P=sign)[0-9]{3})*|(?P<lakh>[,])(?:[0-9]{2},)+[0-9]{3})?"
)


def read_money(text: str, currency: str) -> int:
    """The minor units of `currency` in an amount such as `12.34`, `1.234,56` or `-¥500`; negative is a refund.

    Raises InvalidValue for what is no amount, has more decimals than the currency, could be read in two ways, names
    another currency, or is beyond what a hit can carry.
    """
    digits = MINOR_UNITS[currency]
    example = _example(digits)
    match = _TYPED.fullmatch(text.translate(_SPACES).strip()) if len(text) <= _MAX_TYPED else None
    if match is None or (match[1] and match[3]):
        raise InvalidValue("amount", f"Write the amount in digits, such as {example}.")
    _check_currency((match[2] + match[5]).strip(), currency, example)
    number = match[4]

    decimal_sign = re.search(r"[.,](?=[^.,]*$)", number)
    if decimal_sign and number.count(decimal_sign[0]) == 1:
        whole, fraction = number[: decimal_sign.start()], number[decimal_sign.end() :]
        if re.fullmatch("[0-9]{3}", fraction) and re.fullmatch("[1-9][0-9]{0,2}", whole):
            if digits:
                decimals = f"{whole}.{fraction}0" if digits > 2 else f"{whole}.{fraction[:2]}"
                raise InvalidValue(
                    "amount",
                    f"{number} could be read as {whole}{fraction} or as {whole}.{fraction}. "
                    f"Write {whole}{fraction} or {decimals}.",
                )
            whole, fraction = whole + fraction, ""
        elif not re.fullmatch("[0-9]+", fraction):
            raise InvalidValue("amount", f"Write the amount in digits, such as {example}.")
    else:
        whole, fraction = number, ""

    if whole and not whole.isdigit() and _GROUPS.fullmatch(whole) is None:
        raise InvalidValue("amount", f"It is not clear how to read {number}. Write digits only, such as {example}.")
    fraction = fraction[:digits] + fraction[digits:].rstrip("0")
    if len(fraction) > digits:
        decimals = f"{digits} decimals" if digits else "no decimals"
        raise InvalidValue("amount", f"{currency} has {decimals}. Write {example}, for example.")
    units = re.sub("[^0-9]", "", whole) + fraction.ljust(digits, "0")
    # Python refuses to read a number of many thousand digits.
    if len(units.lstrip("0")) > len(str(MAX_AMOUNT)) or int(units) > MAX_AMOUNT:
        raise InvalidValue("amount", "An amount is at most 10^15 in the currency's smallest unit.")
    return -int(units) if "-" in (match[1], match[3]) else int(units)


def _example(digits: int) -> str:
    return "1234" + f".{'5678'[:digits]}" * bool(digits)


def _check_currency(named: str, currency: str, example: str) -> None:
    if not named or named.upper() == currency or currency in _SIGNS.get(named, "").split():
        return
    if named in _SIGNS or named.upper() in MINOR_UNITS:
        raise InvalidValue("amount", f"The amount is in {named}, but the currency is {currency}. Change one of them.")
    raise InvalidValue("amount", f"Write the amount in digits, such as {example}.")

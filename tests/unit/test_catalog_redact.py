"""Secrets out, and nothing that PostgreSQL cannot hold: no I/O."""

from __future__ import annotations

import dataclasses
import enum
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fm_storage.catalog.record import redact
from fm_storage.catalog.record.redact import (
    MAX_CONTEXT_BYTES,
    clean_context,
    is_plain,
    mask_context,
    mask_text,
    repair_context,
    repair_text,
)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("login with password=hunter2 failed", "hunter2"),
        ("user's Password: 'a b c' is wrong", "a b c"),
        ('{"api_key": "abcd-1234", "n": 1}', "abcd-1234"),
        ("AWS_SECRET_ACCESS_KEY=abc/def+gh", "abc/def"),
        ("accessToken: tok_9f", "tok_9f"),
        ("Authorization: Bearer abc.def.ghi-jkl", "abc.def"),
        ("sent Bearer abcdefghijklmnop123456 along", "abcdefghij"),
        ("Cookie: sid=1; theme=dark", "sid=1"),
        ("postgresql://ada:p@ss@db.test/shop refused", "p@ss"),
        ("https://x.test/p?token=abc&page=2", "=abc"),
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc_d", "eyJ"),
        ("key AKIAIOSFODNN7EXAMPLE found", "AKIA"),
        ("ghp_0123456789abcdefghijABCDEFGHIJ012345", "ghp_"),
        ("xoxb-123456789012-abcdefghij", "xoxb"),
        ("card 4111 1111 1111 1111 declined", "4111"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
            "MIIE",
        ),
        ("-----BEGIN PRIVATE KEY-----\nMIIE cut off", "MIIE"),
        ("password is: x7Kq9z", "x7Kq9z"),
        ("the password is n4AXQz2i4, try it", "n4AXQz2i4"),
        ("mot de passe : 'ouvre toi'", "ouvre"),
        ("le mot de passe est x7Kq9z", "x7Kq9z"),
        ("mdp=x7Kq9z", "x7Kq9z"),
        ("Passwort lautet x7Kq9z", "x7Kq9z"),
        ("contrase\u00f1a: x7Kq9z", "x7Kq9z"),
        ("password was 'open sesame'", "sesame"),
        ("passwd -> x7Kq9z", "x7Kq9z"),
        ("<db:password kind='x'>open sesame</db:password>", "sesame"),
        ("machine a.test login bob password x7Kq9z", "x7Kq9z"),
        ("curl -s -u bob:x7Kq9z https://x.test", "x7Kq9z"),
        ("mysql -uroot -px7Kq9z shop", "x7Kq9z"),
        ("bob:$apr1$ab$kxMd5ivzt19u6sESk2WTmU", "kxMd5"),
        ("hash $2b$12$Rfteu4J6L1W8UhrAr8YGnPbjDV6GBYA06pcQbWmWmvpQJwtu1KF9H", "Rfteu"),
        ("APP_KEY=base64:XMXJ0k7nrCICwFKG=", "XMXJ0"),
        ("Authorization: SSWS 00CNiKOE7nkVisNP3wdavM", "00CNi"),
    ],
)
def test_a_secret_is_masked_and_masking_again_changes_nothing(text, secret):
    """The line stays readable, the secret is gone, and the mask is stable."""
    masked = mask_text(text)
    assert secret not in masked
    assert "***" in masked
    assert mask_text(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "compass: north",
        "tokens: 5 left",
        "password is wrong",
        "password is: required",
        "le mot de passe est obligatoire",
        "il passe par ici: x",
        "token is expired",
        "the secret is out",
        "session_id is None",
        "login with password failed",
        "token => end of input",
        "PWD=/home/ada",
        "en-us locale",
        "password=",
        "keyboard interrupt",
        "order 4111111111111112 shipped",
        "job_1445144423722_0020",
        "https://shop.test:8443/a/b",
        "authenticated as ada",
        "",
    ],
)
def test_what_is_no_secret_stays(text):
    """Words that merely contain a secret's name are left alone."""
    assert mask_text(text) == text


def _like(shape):
    """Return text of a shape: x is a letter or digit, 9 a digit, h hexadecimal."""
    letters = {"x": "aZ3bY4cX5dW6", "9": "4816203795", "h": "0a1b2c3d4e5f"}
    return "".join(
        letters[c][at % len(letters[c])] if c in letters else c
        for at, c in enumerate(shape)
    )


VENDORS = {
    "AWS": "AKIA" + _like("x" * 16).upper(),
    "AWS temporary": "ASIA" + _like("x" * 16).upper(),
    "Google API": "AI" + "za" + _like("x" * 35),
    "Google OAuth": "ya" + "29." + _like("x" * 60),
    "GitHub": "gh" + "o_" + _like("x" * 36),
    "GitHub fine": "github" + "_pat_" + _like("x" * 22),
    "GitLab runner": "gl" + "rt-" + _like("x" * 20),
    "Slack app": "xa" + "pp-1-" + _like("x" * 30),
    "Stripe": "sk" + "_live_" + _like("x" * 24),
    "Stripe webhook": "wh" + "sec_" + _like("x" * 32),
    "OpenAI": "sk" + "-" + _like("x" * 48),
    "OpenAI service": "sk" + "-svcacct-" + _like("x" * 58),
    "Anthropic": "sk" + "-ant-" + _like("x" * 40),
    "Hugging Face": "hf" + "_" + _like("x" * 34),
    "SendGrid": "S" + "G." + _like("x" * 22) + "." + _like("x" * 43),
    "DigitalOcean": "do" + "p_v1_" + _like("h" * 64),
    "Vault": "hv" + "s." + _like("x" * 90),
    "Databricks": "da" + "pi" + _like("h" * 32),
    "Shopify": "shp" + "at_" + _like("h" * 32),
    "Linear": "lin" + "_api_" + _like("x" * 40),
    "Grafana": "gl" + "sa_" + _like("x" * 32) + "_" + _like("h" * 8),
    "New Relic": "NR" + "AK-" + _like("x" * 27).upper(),
    "Supabase": "sb" + "p_" + _like("h" * 40),
    "Mailgun": "ke" + "y-" + _like("h" * 32),
    "Azure client": _like("xxx") + "8" + "Q~" + _like("x" * 34),
    "Twilio": "S" + "K" + _like("h" * 32),
    "Mailchimp": _like("h" * 32) + "-us12",
    "Airtable": "pa" + "t" + _like("x" * 14) + "." + _like("h" * 64),
    "Bitbucket": "AT" + "BB" + _like("x" * 32),
    "Dropbox": "s" + "l." + _like("x" * 130),
    "Discord": "MT" + _like("x" * 20) + ".Gx1abc." + _like("x" * 38),
    "Telegram": "123456789" + ":AA" + _like("x" * 33),
    "NuGet": "oy" + "2" + _like("x" * 43).lower(),
    "crates.io": "ci" + "o" + _like("x" * 32),
    "HubSpot": "pat" + "-na1-" + _like("h" * 36),
    "Yandex": "t" + "1." + _like("x" * 40) + ".abcd",
    "Cloudflare": "v" + "1.0-" + _like("h" * 24) + "-" + _like("h" * 40),
    "Google refresh": "1" + "//0" + _like("x" * 60),
    "Flutterwave": "FLW" + "SECK-" + _like("h" * 32) + "-X",
} | {
    prefix: prefix + _like(shape)
    for prefix, shape in (
        ("EAAA", "x" * 60),
        ("NRII-", "x" * 32),
        ("figd_", "x" * 40),
        ("pul-", "h" * 40),
        ("CLOJARS_", "h" * 60),
        ("dckr_oat_", "x" * 32),
        ("r8_", "x" * 37),
        ("sk-or-v1-", "h" * 64),
        ("api_org_", "x" * 34),
        ("AQVN", "x" * 35),
        ("AKCp", "x" * 69),
        ("ops_eyJ", "x" * 250),
        ("tfp_", "x" * 59),
        ("pnu_", "x" * 36),
        ("rdme_", "h" * 70),
        ("sgp_", "h" * 40),
        ("duffel_live_", "x" * 43),
        ("EZAK", "x" * 54),
        ("fio-u-", "x" * 64),
        ("access-production-", "h" * 36),
        ("rzp_live_", "x" * 14),
        ("xkeysib-", "h" * 64),
        ("shippo_live_", "h" * 40),
        ("nfp_", "x" * 36),
        ("fo1_", "x" * 43),
        ("fm2_", "x" * 100),
        ("rnd_", "x" * 28),
        ("bkua_", "h" * 40),
        ("CCIPAT_abc_", "h" * 40),
        ("sqp_", "h" * 40),
        ("ABSK", "x" * 110),
        ("oauth:", "h" * 30),
        ("tskey-auth-", "x" * 40),
        ("pcsk_", "x" * 70),
        ("nvapi-", "x" * 64),
        ("phx_", "x" * 43),
        ("lsv2_pt_" + _like("h" * 32) + "_", "h" * 10),
        ("re_" + _like("x" * 8) + "_", "x" * 24),
        ("vcp_", "x" * 56),
        ("aio_", "x" * 28),
        ("sk-lf-", "h" * 36),
        ("ico-", "x" * 32),
        ("cmVmdGtu", "x" * 56),
        ("tvly-", "x" * 32),
    )
}


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(
    "around", ["{}", "using {} now", '{{"k": "{}"}}', "x={};", "({})"]
)
def test_the_keys_of_vendors_are_masked_by_their_shape(vendor, around):
    """Wherever they stand; each is put together here, so that none is in a file."""
    key = VENDORS[vendor]
    masked = mask_text(around.format(key))
    assert key not in masked
    assert mask_text(masked) == masked


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("postgresql://app:p@ss/w0rd@db.test:5432/shop refused", "w0rd"),
        ("https://0123456789abcdefghij0123@host.test/a.git", "abcdefghij"),
        ("redis://:hidden7@cache:6379/0", "hidden7"),
        ("host=db password='a b7 c' dbname=shop", "b7"),
        ("pg_dump --password h1dden -h db", "h1dden"),
        ("run --api-key h1dden", "h1dden"),
        ('Authorization: Digest username="bob", response="0a1b2c"', "0a1b2c"),
        ("[('authorization', 'Token h1dden')]", "h1dden"),
        ("(b'cookie', b'sid=h1dden; a=b')", "h1dden"),
        ("{b'x-api-key': b'h1dden'}", "h1dden"),
        ("AccountName=shop;AccountKey=h1dden+/==;EndpointSuffix=x", "h1dden"),
        ("Server=db;User Id=sa;Password=h1dden;", "h1dden"),
        ("GET /k?X-Amz-Date=1&X-Amz-Signature=0a1b2c3d", "0a1b2c3d"),
        (orjson.dumps({"body": '{"password": "h1d\\"den"}'}).decode(), "h1d"),
        ("password\n  too short [type=x, input_value='h1dden', y]", "h1dden"),
        ("DETAIL:  Key (email, password)=(a@b.c, h1dden) already exists.", "h1dden"),
        ("ALTER ROLE app PASSWORD 'h1d''den'", "den"),
        ("CREATE USER a IDENTIFIED BY 'h1dden'", "h1dden"),
        ("db:\n  password: h1dden\n  host: db", "h1dden"),
        ("password: correcthorse", "correcthorse"),
        ("POST https://hooks.slack.com/services/T0/B0/h1dden 404", "h1dden"),
        ("https://api.telegram.org/bot123:h1dden/send", "h1dden"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nh1dden\n", "h1dden"),
        ("db.test:5432:shop:app:h1dden", "h1dden"),
        ("*:*:*:app:h1d\\:den", "den"),
        ("http --auth bob:h1dden GET x.test", "h1dden"),
        ("redis-cli -h x -a h1dden ping", "h1dden"),
        ("AUTH default h1dden77", "h1dden"),
        ("S: AUTH PLAIN AGFkYQBoMWRkZW4=", "AGFk"),
        ("CONFIG SET requirepass h1dden", "h1dden"),
        ("docker login -u u -p h1dden r.test", "h1dden"),
        ("az login --service-principal -u x -p h1dden", "h1dden"),
        ("openssl rsa -passin pass:h1dden", "h1dden"),
        ("zip -P h1dden a.zip", "h1dden"),
        ("keytool -storepass h1dden -keypass x7y", "h1dden"),
        ("htpasswd -b file bob h1dden", "h1dden"),
        ("sqlplus scott/h1dden@orcl", "h1dden"),
        ("jdbc:oracle:thin:app/h1dden@//h:1521/s", "h1dden"),
        ('echo "bob:h1dden" | chpasswd', "h1dden"),
        ("CREATE USER a IDENTIFIED WITH plugin BY 'h1dden'", "h1dden"),
        ("CREATE LOGIN a WITH PASSWORD = N'h1dden'", "h1dden"),
        ("CREATE ROLE a PASSWORD $$h1dden$$", "h1dden"),
        ("SET PASSWORD = PASSWORD('h1dden')", "h1dden"),
        ("INSERT INTO u (name, password) VALUES ('bob', 'h1dden')", "h1dden"),
        ("DRIVER={ODBC};UID=u;PWD={h1d;den}", "den"),
        ("cookies={'session': 'h1dden'}", "h1dden"),
        ("<Cookie session=h1dden for x.test/>", "h1dden"),
        ("auth=('bob', 'h1dden')", "h1dden"),
        ('["password"]=> string(6) "h1dden"', "h1dden"),
        ('name="password"\r\n\r\nh1dden\r\n--', "h1dden"),
        ("eyJhbGciOiJkaXIifQ..aXYx.Y2lwaGVy.dGFn", "Y2lwaGVy"),
        ("card 4111 1111 1111 1111 123", "4111"),
        ("session_id=h1dden secret_id=h1dden", "h1dden"),
        ('{"name": "DB_PASSWORD", "value": "h1dden"}', "h1dden"),
        ("- name: DB_PASSWORD\n  value: h1dden\n", "h1dden"),
        ("smtpPass=h1dden pgpass=h1dden pw=h1dden creds=h1dden", "h1dden"),
        (repr(orjson.dumps({"password": 'a "h1dden" b'}).decode()), "h1dden"),
        ("password='h1dden\\\\'", "h1dden"),
        ("password\\n  too short [type=x, input_value='h1dden', y]", "h1dden"),
    ],
)
def test_secrets_are_masked_in_every_dress(text, secret):
    """As drivers, shells, servers and libraries print them."""
    masked = mask_text(text)
    assert secret not in masked
    assert mask_text(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "unexpected token: '}' at line 3",
        "Unexpected token: u",
        "Unexpected token '<', \"<!DOCTYPE\" is not valid JSON",
        "password: must be at least 12 characters",
        "password: required",
        "secret: missing in config",
        "tests pass=12 fail=3",
        "token_count=17 max_tokens: 4096",
        "password=None token=null",
        "authorization failed: user is not allowed",
        "cookie: not set",
        "CSRF: token mismatch",
        "bearer authentication required",
        "Basic authenticationfailure",
        "password_length=12 token_type=bearer",
        "ssh://git@github.com/a",
        "http://shop.test:8080/path?mail=a@b",
        "partition key=42",
        "commit 0a1b2c3d4e5f60718293a4b5c6d7e8f901234567",
        "fe80:0000:1234:abcd:ef01:2345",
        "10.0.0.7:51234:app@shop:[31]:ERROR:  no table",
        "arn:aws:iam::123456789012:role/x",
        "docker run -p 8080:80 nginx",
        "mysql -h db -P 3306 shop",
        "openssl enc -k is deprecated",
        "requirepass is set",
        "AUTH CRAM-MD5 rejected",
        "INSERT INTO u (name, password) VALUES ($1, $2)",
        "cookies={} cookie=None",
        "password_changed_at=2026-01-02 private_key_path=/etc/k.pem api_key_id=7",
        "Fan speeds ( 43759 77826 49010 7678 78119 12527 )",
        "sizes 4012 8888 8888 1881 9999 1234",
        "REPORT : 367 46048 89839 5",
        "re_compile failed in aio_read",
        "jwt: malformed byPass=true bypass=12 tokenType=bearer secretName=db",
        "name: bob\nvalue: 7",
    ],
)
def test_what_only_speaks_of_secrets_stays(text):
    """Prose, counts and the tokens of parsers are no secrets."""
    assert mask_text(text) == text


@pytest.mark.parametrize(
    ("number", "masked"),
    [
        ("4111111111111111", True),
        ("5500 0000 0000 0004", True),
        ("378282246310005", True),
        ("6011111111111117", True),
        ("3530111333300000", True),
        ("30569309025904", True),
        ("1767348672000", False),
        ("1000000000009", False),
        ("0000000000000000", False),
        ("1767348672345000000", False),
        ("00340434161094042557", False),
    ],
)
def test_a_card_has_its_networks_prefix_and_length(number, masked):
    """Times in milliseconds and ids are none, whatever their check digit."""
    text = f"number {number} of shard 7"
    assert (mask_text(text) != text) is masked


def test_names_and_values_side_by_side_are_masked_in_a_context():
    """Headers come as pairs, arguments as lists; plurals hold secrets or count."""
    assert mask_context(
        {
            "headers": [["x-api-key", "h1dden"], ["accept", "*/*"]],
            "args": ["--token", "h1dden", "--user", "bob"],
            "passwords": ["h1dden"],
            "token_count": 17,
            "api_keys": 2,
        }
    ) == {
        "headers": [["x-api-key", "***"], ["accept", "*/*"]],
        "args": ["--token", "***", "--user", "bob"],
        "passwords": "***",
        "token_count": 17,
        "api_keys": 2,
    }


def test_context_is_masked_by_key_and_by_shape():
    """A secret's key masks any value; other values are searched like text."""
    assert mask_context(
        {
            "password": "x",
            "userPassword": 7,
            "sessionId": "s",
            "auth": {"a": 1},
            "deep": [{"token": ["t"]}, "pwd=3 here"],
            "empty": {"secret": "", "token": None},
            "author": "me",
            "passenger": "z",
            "tokens": 3,
            "env": [{"name": "DB_PASSWORD", "value": "x"}, {"name": "A", "value": "x"}],
            "tokenType": "bearer",
            "cookie_consent": True,
        }
    ) == {
        "password": "***",
        "userPassword": "***",
        "sessionId": "***",
        "auth": "***",
        "deep": [{"token": "***"}, "pwd=*** here"],
        "empty": {"secret": "", "token": None},
        "author": "me",
        "passenger": "z",
        "tokens": 3,
        "env": [{"name": "DB_PASSWORD", "value": "***"}, {"name": "A", "value": "x"}],
        "tokenType": "bearer",
        "cookie_consent": True,
    }


def test_text_is_repaired_and_the_repairs_are_named():
    """NUL and surrogates are shown as text; the middle of a long text goes."""
    assert repair_text("fine ü 漢") == ("fine ü 漢", ())
    text, done = repair_text("a\x00b\udcffc")
    assert text == "a\\x00b\\udcffc"
    assert done == ("NUL escaped", "surrogates escaped")
    long, done = repair_text("x" * 50 + "y" * 500 + "z" * 50, limit=200)
    assert long.startswith("x" * 50)
    assert long.endswith("z" * 50)
    assert "600" in done[0]


class _Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class _Thing:
    name: str
    size: float


class _Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class _BrokenMap(dict):  # type: ignore[type-arg]  # hostile on purpose
    def items(self):
        raise RuntimeError("no items")


def test_values_of_every_kind_become_json():
    """What JSON has a word for is kept, the rest becomes text, and it says so."""
    given_id = UUID(int=7)
    context, done = repair_context(
        {
            "id": given_id,
            "at": datetime(2024, 1, 2, tzinfo=UTC),
            "day": date(2024, 1, 2),
            "took": timedelta(seconds=3),
            "colour": _Colour.RED,
            "thing": _Thing("t", 1.5),
            "bytes": b"ab\xff",
            "set": {1},
            "tuple": (1, None, True),
            "nan": float("nan"),
            "huge": 2**70,
            3: object,
            "broken": _Broken(),
            "map": _BrokenMap(a=1),
            "nul": "a\x00",
        }
    )
    assert context is not None
    assert context["id"] == str(given_id)
    assert context["at"] == "2024-01-02T00:00:00+00:00"
    assert context["day"] == "2024-01-02"
    assert context["took"] == "0:00:03"
    assert context["colour"] == "red"
    assert context["thing"] == {"name": "t", "size": 1.5}
    assert context["bytes"] == "ab\ufffd"
    assert context["set"] == [1]
    assert context["tuple"] == [1, None, True]
    assert context["nan"] == "nan"
    assert context["huge"] == str(2**70)
    assert context["3"] == "<class 'object'>"
    assert context["broken"] == "<unreadable _Broken>"
    assert context["map"] == "<unreadable _BrokenMap>"
    assert context["nul"] == "a\\x00"
    assert len(done) == 5
    assert repair_context(None) == (None, ())


def test_a_context_without_bound_is_bounded():
    """Depth, length and bytes have limits; what was cut is named."""
    deep: dict[str, object] = {}
    at = deep
    for _ in range(100):
        at["down"] = at = {}
    context, done = repair_context({"deep": deep, "list": range(3)})
    assert any("too deep" in change for change in done)
    assert context is not None

    context, done = repair_context({"many": list(range(5000))})
    assert context is not None
    assert len(context["many"]) == 1000  # a list

    context, done = repair_context({f"key{n}": "v" * 2000 for n in range(900)})
    assert len(orjson.dumps(context)) <= MAX_CONTEXT_BYTES
    assert any("shortened" in change for change in done)
    cyclic: dict[str, object] = {}
    cyclic["self"] = cyclic
    assert repair_context(cyclic)[0] is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON))
@pytest.mark.lengthy
def test_any_context_can_be_stored_after_repair(context):
    """JSON and PostgreSQL take the result: no NUL, no surrogate, no NaN."""
    repaired, _ = repair_context(context)
    data = orjson.dumps(mask_context(repaired))
    assert not any("\x00" in text for text in _texts(orjson.loads(data)))


def _texts(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value


@given(st.text(alphabet=st.characters(codec=None)))
def test_any_text_can_be_stored_after_repair(text):
    """Whatever a log holds can be encoded and has no NUL."""
    repaired, _ = repair_text(text)
    assert "\x00" not in mask_text(repaired)
    mask_text(repaired).encode()


PIECES = st.sampled_from(
    [
        "api",
        "access",
        "private",
        "session",
        "_",
        "-",
        "key",
        "KEY",
        "keyboard",
        "=",
        ":",
        "'",
        "x",
        "7",
        "4111111111111111",
        "a@b",
        "acce\u017f\u017f",
        "\u212aey",
        "AP\u0130",
        "ap\u0131",
        "to\u212aen",
        "\u00e9",
        "http://u:p@h",
        "\u0664111111111111111",
        "secret",
        " ",
        "\n",
        "4111 1111 1111 1111",
        "Bearer abcdefghijklmnopqrst",
        "Cookie: a=b",
        "PASSWORD 'x'",
        "(password)=(x)",
        "--token x",
        "'token', 'x'",
        "password\n input_value=x",
        "hooks.slack.com/services/x",
        "password is x7Kq",
        " was ",
        "mot de passe",
        "mot_de_passe",
        " de ",
        "<password>x</password>",
        "$apr1$ab$kxMd5ivzt19u6sESk2WTmU",
        "curl -u a:b",
        "machine a login b password c",
        *VENDORS.values(),
    ]
)


@given(st.lists(PIECES, max_size=14).map("".join))
def test_the_quick_looks_never_hide_a_secret_from_the_patterns(text):
    """Text counts as free of secrets only if every pattern leaves it as it is."""
    masked = text
    for rule in redact._RULES:
        masked = rule.pattern.sub(rule.replace, masked)
    assert mask_text(text) == redact._CARD.sub(redact._mask_card, masked)
    if is_plain(text, None):
        assert mask_text(text) == text
    if is_plain("message", {text: "value"}):
        assert clean_context({text: "value"}) == ({text: "value"}, ())


@given(
    st.dictionaries(
        PIECES | st.text(max_size=20),
        st.text(max_size=20) | st.integers() | st.booleans() | st.none() | st.floats(),
        min_size=1,
    )
)
def test_a_plain_context_is_one_that_cleaning_leaves_as_it_is(context):
    """Numbers beside the text are no reason to look at everything."""
    if is_plain("message", context):
        assert clean_context(context) == (context, ())


@pytest.mark.parametrize(
    ("context", "plain"),
    [
        ({"key1": "v", "user": 7, "late": True, "shop": None}, True),
        ({"n": 2**64 - 1, "m": -(2**63)}, True),
        ({"n": 2**64}, False),
        ({"n": 0.5}, False),
        ({"pin": "4111 1111 1111 1111"}, False),
        ({"password": 7}, False),
        ({"api-key2": "v"}, False),
        ({7: "v"}, False),
    ],
)
def test_what_counts_as_plain(context, plain):
    """Common contexts take the short way, everything doubtful the long one."""
    assert is_plain("order 7 refused", context) is plain

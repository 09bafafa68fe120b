"""What must not be stored: secrets, and what PostgreSQL cannot hold.

Everything on its way into the catalogue passes here first: message, trace,
context, and the text that is embedded.

Masked are, in message, trace, notes and context alike: values behind names such as
password, passphrase, secret, token, api_key, access_key, account_key, private_key,
credential, authorization, cookie, csrf, signature, session_id, pass, pwd, otp, cvv
and ssn (in ``name=value``, ``name: value``, ``name is value``, JSON, also within a
string, XML, pairs of a list, ``--name value``, a unique key's DETAIL, and keys of the
context; there also auth); ``PASSWORD '…'`` in SQL; the password, or a token, in a URL;
whole Cookie and Digest headers; Bearer and Basic credentials; JSON web tokens; private
keys in PEM and PuTTY's files; webhooks of Slack, Discord, Teams, Zapier and Telegram;
hashes of passwords; what curl, mysql, docker, openssl and other commands take;
lines of .pgpass and .netrc; keys of more than a hundred vendors by their shape;
card numbers by the prefix and length of their network that pass Luhn's test. Not
masked: secrets that look like words behind a colon, with more words to follow; and
what only speaks of a secret (``password: must be at least 12 characters``).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import orjson

if TYPE_CHECKING:
    from fm_storage._typing import Json, JsonObject

MASK = "***"

MAX_TEXT = 64 * 1024
"""Characters kept of a message or trace; the middle of a longer one goes."""

MAX_CONTEXT_BYTES = 64 * 1024
"""Bytes of JSON kept as context; larger values in it are shortened."""

_COMMON = 600  # bytes of a message with its context that are worth remembering
_MAX_DEPTH = 12
_MAX_ITEMS = 1000
_MAX_VALUE = 8 * 1024
_SHORT_VALUE = 256
_LEAST, _MOST = -(2**63), 2**64 - 1  # integers that JSON's writer takes
_TEXT = frozenset({str})
_SIMPLE = frozenset({str, int, bool, type(None)})
_LOST = re.compile("[\x00\ud800-\udfff]")
_UTF8 = ("utf-8", "surrogatepass")

# Names whose value is a secret, as they occur as keys and in ``name=value``. The
# short ones are parts of common words (compass) and must begin one themselves.
_LONG = (
    r"password|passphrase|passwd|passwort|kennwort|mot[ _-]de[ _-]passe"
    r"|contrase(?:n|\u00f1)a|secret|token|credentials?|authorization"
    r"|cookie|csrf|xsrf|signature|session[_-]?id|(?:store|key|require|pg|db)pass"
)
_KEYS = (
    r"(?:api|app|access|private|signing|encryption|session|account|shared|storage"
    r"|master|auth|secret|license|webhook|consumer|hmac|subscription|deploy"
    r"|instrumentation)[_-]?key"
)
_SHORT = r"pass|passcode|pwd|pw|mdp|otp|cvv|cvc|ssn|sig|jwt|creds"
_NAMES = (
    rf"(?:{_LONG}|{_KEYS}|(?<![A-Za-z])(?:{_SHORT})"
    r"|(?-i:(?<=[a-z])(?:Pass|Pwd))(?![a-z]))"
)
_SECRET_KEY = re.compile(
    rf"(?i:{_NAMES}|(?<![A-Za-z])auth)(?:$|[^A-Za-z]|(?<=[a-z])(?=[A-Z]))"
)
# Of these a program may also say how many there are.
_SECRETS_KEY = re.compile(rf"(?i:(?:{_LONG}|{_KEYS})s)$")
_NAME_ONLY = re.compile(r"-{0,2}[\w-]+$")
# Ends of names that tell something else about a secret than what it is.
_ABOUT_ENDS = (
    "count|length|len|size|total|limit|ttl|age|type|kind|name|field|policy|expir\\w*"
    "|expires_in|required|enabled|valid|reset|change\\w*|path|url|uri|dir|file|hint|status"
)
_ABOUT = re.compile(
    rf"(?i:[_-](?:{_ABOUT_ENDS}|\w+_at|(?<!secret.)(?<!session.)id)$)"
    rf"|(?<=[a-z])(?:{'|'.join(map(str.capitalize, _ABOUT_ENDS.split('|')))})$"
)
# Values that say something about a secret, and are none.
_WORDS = frozenset({
    "none", "null", "nil", "true", "false", "yes", "no", "empty", "missing", "required",
    "invalid", "expired", "wrong", "incorrect", "unset", "undefined", "hidden",
    "redacted", "masked", "filtered", "must", "is", "was", "has", "not", "should",
    "cannot", "may", "the", "a", "an", "mismatch", "unknown", "eof", "sent", "failed",
    "error", "expected", "denied", "disabled", "enabled", "found", "changed",
    "malformed",
})  # fmt: skip
_COUNTED = re.compile(
    r"(?:token|pass|cookie|secret|credential|session|sig)", re.IGNORECASE
)


class Rule(NamedTuple):
    """A shape of secrets.

    Attributes:
        hint: Found in a word of every text that the pattern changes. Words are
            asked in lower case and without their digits. It costs a tenth of the
            pattern, and most lines hold none.
        pattern: Finds secrets; what its group *kept* matches stays.
        replace: Returns what stands in the place of a match.
    """

    hint: re.Pattern[str]
    pattern: re.Pattern[str]
    replace: Callable[[re.Match[str]], str]


def _mask(match: re.Match[str]) -> str:
    return f"{match['kept']}{MASK}"


def _mask_value(match: re.Match[str]) -> str:
    """Mask the value of a name, unless it speaks about the secret."""
    value, sign = match["value"], match["sign"] or match["verb"]
    if match["verb"] and not match["quote"] and not _looks_random(value):
        return match[0]
    quote = match["quote"] or (value[0] if value[0] in "\"'" else "")
    inner = value[len(quote) : len(value) - len(quote)] if quote else value
    keyed = match["key"] is not None  # as in JSON, where prose does not stand
    if _is_harmless(match["name"], inner, quoted=bool(quote), keyed=keyed, sign=sign):
        return match[0]
    if not quote and sign != "=" and not keyed and _is_prose(match, inner):
        return match[0]
    return f"{match['kept']}{quote}{MASK}{quote}"


def _is_harmless(
    name: str, value: str, *, quoted: bool, keyed: bool, sign: str
) -> bool:
    if _ABOUT.search(name) or (value.lower() in _WORDS and not quoted):
        return True
    if name.lower() == "pwd" and value[:1] in "/~":  # the shell's working directory
        return True
    if value.isdigit() and not quoted and _COUNTED.match(name) is not None:
        # How many tokens there are, how many tests pass.
        return len(value) < _FEW_DIGITS and "password" not in name.lower()
    # A sign in quotes, as parsers name it: unexpected token: '}'.
    signs = sum(map(str.isalnum, value))
    return not keyed and sign == ":" and signs < 2 + quoted


def _looks_random(value: str) -> bool:
    """Return whether a word behind *is* or *was* is more a secret than a word."""
    if value[0] in "\"'":
        return True
    plain = value.rstrip(".!?")
    digits = sum(map(str.isdigit, plain))
    upper = sum(map(str.isupper, plain))
    return 0 < digits < len(plain) or (0 < upper < len(plain) and not plain.istitle())


def _is_prose(match: re.Match[str], value: str) -> bool:
    """Return whether words follow a name and its colon, not a secret."""
    plain = value.rstrip(".!?")
    if not plain.isalpha() or not (plain.islower() or plain.istitle()):
        return False
    rest = match.string[match.end() :].split("\n", 1)[0].strip()
    return bool(rest) or plain.lower() in _WORDS


def _rule(
    hint: str, pattern: str, replace: Callable[[re.Match[str]], str] = _mask
) -> Rule:
    flags = re.VERBOSE | re.DOTALL | re.IGNORECASE
    return Rule(re.compile(hint), re.compile(pattern, flags), replace)


_NAMED = f"{_LONG}|passe(?![a-z])|{_KEYS}|(?:{_SHORT})(?![a-z])"
_QUOTED = r"""(?:"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')"""
_RULES = (
    _rule(
        "-----begin",
        r"""(?P<kept>)-----BEGIN[ ][A-Z0-9 ]*PRIVATE[ ]KEY(?:[ ]BLOCK)?-----
            (?:.*?-----END[ ][A-Z0-9 ]*PRIVATE[ ]KEY(?:[ ]BLOCK)?-----|.*)""",
    ),
    # Up to the last @ of the word, for passwords with @ or / in them; but what
    # follows a host and its port is a path.
    _rule(
        "://.*@",
        r"""(?P<kept>\b[a-z][a-z0-9+.-]*://[^\s:/@?\#]*:)(?!\d{1,5}(?:[/?\#\s]|$))
            [^\s"'<>]*(?=@)""",
    ),
    _rule("://.*@", r"(?P<kept>://)[A-Za-z0-9_-]{20,}(?=@)"),
    _rule("cookie", r"""(?P<kept>\b(?:Set-)?Cookie["']?:[ ]*)[^\r\n=]*=[^\r\n]*"""),
    _rule(
        "cookie",
        r"""(?P<kept><Cookie[ ][^\s=]+=|\bcookies?\s*[=:]\s*)
            (?:\{[^{}\n]+\}|[^\s{]+(?=[ ]for[ ]))""",
    ),
    _rule(
        "authorization",
        r"""(?P<kept>\bauthorization:[ ]*(?:Digest|AWS4-HMAC-SHA256|Negotiate)[ ]+)
            [^\r\n]+""",
    ),
    _rule(
        "bearer|basic",
        r"""(?P<kept>\b(?:Bearer|Basic)[ ]+)
            (?=[A-Za-z0-9+/=._~-]*(?:[\d=]|(?-i:[A-Z])))[A-Za-z0-9+/=._~-]{16,}""",
    ),
    # Shapes of vendors, facts that secret scanners list.
    _rule(
        "eyj|a[ksbc][ic]a|gh[pousr]_|_pat_|gl[a-z]{2,5}-|xox|xapp-|[srp]k[-_]|whsec_"
        r"|aiza|ya\.|gocspx-|npm_|pypi-|rubygems_|hf_|sg\.|do[opr]_v_|hv[sbr]\.|dapi"
        r"|shp[a-z]{2}_|sq[a-z]{3}-|lin_api_|ntn_|secret_|pmak-|dp\.[a-z]+\.|glsa_|glc_"
        r"|nrak-|sntry|atlasv\.|age-secret|pscale_|sbp_|atatt|key-|hrku-|cfpat-|dtc\."
        r"|ltai|akid|pplx-|gsk_|xai-|q~|sk[a-f]{4}|[a-f]-us|pat[a-z]*\.[a-f]{8}|atbb"
        r"|eaa"
        r"|nrii-|fig[dou]r?h?_|sl\.[a-z_-]{40}|[mno][a-z_-]{8,}\.[a-z_-]+\.[a-z_-]{12}"
        r"|:aa[a-z_-]{12}|pul-[a-f]|cio[a-z]{12}|oy[a-z]{16}|clojars_|dckr_|r_[a-z]{10}"
        r"|api_org_|aqvn|t\.[a-z_=-]{12,}\.|akcp|ops_eyj|tfp_|pnu_|rdme_|sgp_|duffel_"
        r"|ez[at]k|flwseck|fio-u-|pat-[a-z]{2}-|access-(?:sandbox|dev|prod)|rzp_"
        r"|xkeysib-|shippo_|nfp_|\bfo_|\bfm[ar]?_|rnd_|v\.-[a-f]{4}|bkua_|ccipat_"
        r"|sq[pau]_"
        r"|//[a-z_-]{16}|absk|oauth:[a-z]{10}|tskey-|pcsk_|nvapi-|lsv_|phx_|\bre_|vc[a-z]_"
        r"|aio_|sk-lf|ico-|pat\.|scw[a-z]{4}|/:[a-f]{6}|cmvmdgtu|bd[a-z]{15}|tvly-|jina_",
        r"""(?P<kept>)(?<![A-Za-z0-9_])(?:
             eyJ[A-Za-z0-9_-]{8,}\.(?:[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){0,3}
               |(?:\.[A-Za-z0-9_-]+){3})
            |(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}
            |gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{22,}
            |gl(?:pat|rt|dt|ft|cbt|ptt|imt|soat|oas|agent)-[A-Za-z0-9_-]{16,}
            |xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-\d-[A-Za-z0-9-]{10,}
            |(?:sk|rk|pk)[-_](?:live|test|proj|ant|svcacct|admin|or)[-_][A-Za-z0-9_-]{16,}
            |sk-[A-Za-z0-9]{32,}|whsec_[A-Za-z0-9+/=]{24,}
            |AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,}|GOCSPX-[A-Za-z0-9_-]{20,}
            |npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{32,}|rubygems_[0-9a-f]{48}
            |hf_[A-Za-z0-9]{30,}|SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}
            |do[opr]_v1_[0-9a-f]{64}|hv[sbr]\.[A-Za-z0-9_-]{20,}|dapi[0-9a-f]{32}
            |shp(?:at|ca|pa|ss)_[0-9a-f]{32}|sq0[a-z]{3}-[A-Za-z0-9_-]{22,}
            |lin_api_[A-Za-z0-9]{32,}|(?:ntn|secret)_[A-Za-z0-9]{40,}
            |PMAK-[0-9a-f]{24}-[0-9a-f]{34}|dp\.[a-z]{2,5}\.[A-Za-z0-9]{40,}
            |glsa_[A-Za-z0-9]{32}_[0-9a-f]{8}|glc_[A-Za-z0-9+/=]{32,}
            |NR(?:AK|II)-[A-Za-z0-9_-]{27,}|sntry[su]_[A-Za-z0-9+/=_]{40,}
            |[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,}|AGE-SECRET-KEY-1[A-Z0-9]{58}
            |pscale_(?:tkn|pw|oauth)_[A-Za-z0-9_.-]{32,}|sbp_[0-9a-f]{40}
            |ATATT3[A-Za-z0-9_=-]{50,}|key-[0-9a-f]{32}|HRKU-[A-Za-z0-9_-]{36,}
            |CFPAT-[A-Za-z0-9_-]{43}|dt0[a-z]\d{2}\.[A-Z0-9]{24}\.[A-Z0-9]{64}
            |LTAI[A-Za-z0-9]{12,}|AKID[A-Za-z0-9]{13,}|dckr_[po]at_[A-Za-z0-9_-]{27,}
            |pplx-[A-Za-z0-9]{40,}|gsk_[A-Za-z0-9]{40,}|xai-[A-Za-z0-9]{40,}
            |[A-Za-z0-9]{3}\dQ~[A-Za-z0-9_.~-]{31,34}
            |(?-i:SK)(?=(?:\d*[a-f]){4})[0-9a-f]{32}|(?=\d*[a-f])[0-9a-f]{32}-us\d{1,2}
            |pat[A-Za-z0-9]{14}\.(?=(?:\d*[a-f]){8})[0-9a-f]{64}
            |ATBB[A-Za-z0-9]{32}|EAA[A-Za-z0-9_-]{57,}|fig[dou]r?h?_[A-Za-z0-9_-]{32,}
            |sl\.(?=(?:\d*[A-Za-z_-]){40})[A-Za-z0-9_-]{100,}
            |(?-i:[MNO])(?=(?:\d*[A-Za-z_-]){8})[A-Za-z0-9_-]{16,}\.(?=\d*[A-Za-z_-])
             [A-Za-z0-9_-]{6}\.(?=[A-Za-z_-]*\d)(?=(?:\d*[A-Za-z_-]){12})[A-Za-z0-9_-]{27,}
            |\d{8,10}:AA(?=(?:\d*[A-Za-z_-]){12})[A-Za-z0-9_-]{33}
            |pul-(?=\d*[a-f])[0-9a-f]{40}|oy2(?=(?:\d*[a-z]){16})[a-z0-9]{43}
            |cio(?=[A-Za-z]*\d)(?=(?:\d*[A-Za-z]){12})[A-Za-z0-9]{32}
            |CLOJARS_[a-z0-9]{60}|r8_(?=(?:\d*[A-Za-z]){10})[A-Za-z0-9]{37}
            |api_org_[A-Za-z0-9]{34}|AQVN[A-Za-z0-9_-]{35,}
            |t1\.(?=(?:\d*[A-Za-z_=-]){12})[A-Za-z0-9_=-]{30,}\.[A-Za-z0-9_=-]{4,}
            |AKCp[A-Za-z0-9]{60,}
            |ops_eyJ[A-Za-z0-9+/=]{60,}|tfp_[A-Za-z0-9_.-]{40,}|pnu_[A-Za-z0-9]{36}
            |rdme_[a-z0-9]{70}|sgp_(?:(?:[a-z0-9]+_)?[0-9a-f]{40}|[A-Za-z0-9]{64})
            |duffel_(?:live|test)_[A-Za-z0-9_-]{40,}|EZ[AT]K[A-Za-z0-9]{54}
            |FLWSECK(?:_TEST)?-[0-9a-z]{32}(?:-X)?|fio-u-[A-Za-z0-9_=-]{60,}
            |pat-[a-z]{2}\d-[0-9a-f-]{32,}
            |access-(?:sandbox|development|production)-[0-9a-f-]{32,}
            |rzp_(?:live|test)_[A-Za-z0-9]{14}|xkeysib-[0-9a-f]{64}(?:-[A-Za-z0-9]{16})?
            |shippo_(?:live|test)_[0-9a-f]{40}|nfp_[A-Za-z0-9_-]{36}
            |fo1_[A-Za-z0-9_-]{43}
            |fm[12][ar]?_[A-Za-z0-9+/=_-]{60,}|rnd_[A-Za-z0-9]{28,}
            |v1\.0-(?=(?:\d*[a-f]){4})[0-9a-f]{24,}(?:-[0-9a-f]+)?
            |bkua_[0-9a-z]{40}|CCIPAT_[A-Za-z0-9]+_[0-9a-f]{40}|sq[pau]_[0-9a-f]{40}
            |1//0(?=(?:\d*[A-Za-z_-]){16})[A-Za-z0-9_-]{40,}|ABSK[A-Za-z0-9+/=]{60,}
            |oauth:(?=(?:\d*[a-z]){10})[a-z0-9]{30}|tskey-[a-z]+-[A-Za-z0-9-]{20,}
            |pcsk_[A-Za-z0-9_]{40,}|nvapi-[A-Za-z0-9_-]{60,}|phx_[A-Za-z0-9]{40,}
            |lsv2_(?:pt|sk)_[0-9a-f]{32}_[0-9a-f]{10}|re_[A-Za-z0-9]{8}_[A-Za-z0-9]{20,}
            |vc[acikpr]_[A-Za-z0-9]{40,}|aio_[A-Za-z0-9]{28}|sk-lf-[0-9a-f-]{36}
            |ico-[A-Za-z0-9]{32}|pat\.[A-Za-z0-9_-]{22}\.[0-9a-f]{24}\.[A-Za-z0-9]{20}
            |(?-i:SCW)(?=(?:\d*[A-Z]){4})[A-Z0-9]{17}|\d/\d{16}:(?=(?:\d*[a-f]){6})[0-9a-f]{32}
            |cmVmdGtu[A-Za-z0-9]{56}|4b1d(?=(?:\d*[A-Za-z]){15})[A-Za-z0-9]{38}
            |(?:tvly|jina)[_-][A-Za-z0-9_-]{32,})""",
    ),
    _rule(
        r"hooks\.|/webhooks/|telegram\.org|/webhookb",
        r"""(?P<kept>hooks\.slack\.com/(?:services|workflows|triggers)/
            |hooks\.zapier\.com/hooks/catch/|webhook\.office\.com/webhookb2/
            |discord(?:app)?\.com/api/webhooks/|api\.telegram\.org/bot)[^\s"'<>?/]+
            (?:/[^\s"'<>?]+)?""",
    ),
    # Hashes of passwords: crypt, bcrypt, Argon2, Django's, SCRAM.
    _rule(
        r"\$",
        r"""(?P<kept>\$(?:apr1|[1567y]|2[abxy]|gy|argon2\w*|scrypt)\$(?:[\w=,.]{1,40}\$){0,3}
            |\b(?:pbkdf2_sha\d+|SCRAM-SHA-\d+)\$\w{1,40}[$:])[A-Za-z0-9+/=.$:]{20,}""",
    ),
    # Arguments of commands.
    _rule(
        r"curl|wget|^-a$|^--auth|mysql|mariadb|sshpass|machine|docker$|podman$|\baz$"
        r"|redis-cli|ldap|openssl|\bzip\b|htpasswd|sqlplus|oracle:|requirepass|masterauth",
        r"""(?P<kept>\b(?:curl|wget)\b[^\n]{0,300}?
              [ ](?:-u|--(?:proxy-)?user)[ =]?[^\s:]+:
            |\bhttps?\b[^\n]{0,300}?[ ](?:-a|--auth)[ =][^\s:]+:
            |\b(?:mysql\w*|mariadb\w*|sshpass)\b[^\n]{0,300}?[ ](?-i:-p)[ ]?
            |\b(?:docker|podman|az)[ ](?:\S+[ ])?login\b[^\n]{0,300}?[ ]-p[ ]
            |\bredis-cli\b[^\n]{0,300}?[ ]-a[ ]|\bldap\w+\b[^\n]{0,300}?[ ]-w[ ]
            |\bopenssl\b[^\n]{0,300}?[ ](?:-k[ ]|-pass(?:in|out)?[ ]pass:)
            |\bzip\b[^\n]{0,300}?[ ](?-i:-P)[ ]|\b(?:requirepass|masterauth)[ ]
            |\bhtpasswd[ ]-[A-Za-z]*b[A-Za-z]*[ ]\S+[ ]\S+[ ]
            |\b(?:sqlplus[ ]|oracle:\w+:)[^\s/]+/(?=[^\s@]+@)
            |\bmachine\s+\S+\s+login\s+\S+\s+password\s+)
            (?![\s-]|(?:is|was|has|not|are|to)\b)[^\s@"']+""",
    ),
    _rule(
        r"\bauth$",
        r"""(?P<kept>(?-i:\bAUTH)[ ](?:(?:PLAIN|LOGIN|default)[ ])?)
            (?!S?CRAM|XOAUTH|DIGEST)(?=\S*\d)(?=\S*[A-Za-z])[^\s"']{8,}""",
    ),
    _rule(
        "chpasswd",
        r"""(?P<kept>["']?\b[\w.-]+:)[^\s"']+(?=["']?[ ]*\|[ ]*\S*chpasswd)""",
    ),
    # A line of .pgpass; addresses of IPv6 look alike.
    _rule(
        r"[^:]:\*?:[^:]+:[^:]+:.",
        r"""(?P<kept>(?<![^\s"'=(\[])(?![0-9a-fA-F:]+(?![^\s]))(?:\*|[\w-]*[A-Za-z.][\w.-]*)
            :(?:\*|\d{4,5}):(?:\*|(?!\d+:)[^\s:]+):[^\s:[\]]+:)(?:\\.|[^\s:\\"'])+""",
    ),
    _rule(
        r"\bauth(?:=|$)",
        rf"(?P<kept>\bauth[ ]?=[ ]?\(\s*{_QUOTED},\s*){_QUOTED}",
    ),
    _rule(
        "private-lines",
        r"(?P<kept>\bPrivate-Lines:[ ]*\d+\s+)[A-Za-z0-9+/=\s]{40,}",
    ),
    _rule(
        "</",
        rf"(?P<kept><(?:[\w.-]*:)?[\w.-]*{_NAMES}(?:[ ][^<>]*)?>)[^<>]+(?=</)",
    ),
    _rule(
        "password|identified",
        r"""(?P<kept>\b(?:PASSWORD[\s(]+|IDENTIFIED[ ](?:WITH[ ]\S+[ ])?(?:BY|AS)\s+))
            (?:'(?:[^']|'')*'|\$\$.*?\$\$)""",
    ),
    _rule(r"pwd|password", r"(?P<kept>(?:pwd|password)=)\{(?:[^{}\n]|\}\})+\}"),
    _rule(
        "values",
        rf"""(?P<kept>\([^()]*{_NAMES}(?![A-Za-z0-9])[^()]*\)\s*VALUES\s*)
            \((?=[^\n]*')[^\n]*\)""",
    ),
    _rule(  # PHP's var_dump, parts of a form
        r"string\(|name=",
        rf"""(?P<kept>{_NAMES}["']\]\s*=>\s*string\(\d+\)\s*
            |\bname=\\?"[\w-]*{_NAMES}\\?"(?:(?:\\r)?\\n|\r?\n){{2}})
            (?:{_QUOTED}|[^\r\n\\]+)""",
    ),
    _rule(
        r"\)=\(",
        rf"(?P<kept>\([^()]*{_NAMES}(?![A-Za-z0-9])[^()]*\)=)\([^\n]*?\)(?=[ ]|$)",
    ),
    _rule(
        "input_value=",
        rf"(?P<kept>{_NAMES}(?:[_-]\w+)*(?:\n|\\+n)[^\n]*?input_value=)(?:{_QUOTED}|[^\s,]+)",
    ),
    _rule(rf"-.*(?:{_NAMED})", rf"(?P<kept>(?<![\w-])--?[\w-]*{_NAMES}[ ])(?!-)[^\s]+"),
    _rule(  # of Kubernetes, and headers as HAR has them
        r"value[\"']?:",
        rf"""(?P<kept>\b(?:name|key)["']?:\s*["']?[\w-]*{_NAMES}["']?,?\s+
            ["']?value["']?:\s*)(?:{_QUOTED}|[^\s"',}}]+)""",
    ),
    _rule(
        rf"(?:{_NAMED})[\"'],",
        rf"""(?P<kept>["'][\w-]*{_NAMES}["'],\s*b?)(?!["']value["']:){_QUOTED}""",
    ),
    _rule(
        _NAMED,
        rf"""(?P<kept>(?P<name>{_NAMES}(?:[_-][A-Za-z0-9]+)*)(?P<key>\\*["'])?
                (?:\s*(?P<sign>=>|->|[:=])|\s+(?P<verb>(?:is|was|est|lautet):?(?=\s)))
                \s*(?:[bnru](?=["']))?)
            (?P<value>(?P<quote>\\+["']).*?(?P=quote)
            |(?:Bearer|Basic|Token|Digest|Negotiate|SSWS|ApiKey|GenieKey|OAuth|Key|Splunk)\s+(?=[^\s,;"']*(?:[\d=_.-]|(?-i:[A-Z])))[^\s,;"']+
            |"(?:[^"\\\n]|\\+[^\\])*"|'(?:[^'\\\n]|\\+[^\\])*'
            |"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'
            |[^\s,;&"'<>()\[\]{{}}]+)""",
        _mask_value,
    ),
)
_FEW_DIGITS = 7
# Digits alone, or in groups as they stand on cards; longer rows of groups are numbers.
_CARD = re.compile(
    r"(?<![\w.-])(?<!\d{4} )(?:\d{13,19}|\d{4}(?:([ -])\d{4}){3}(?:\1\d{1,3})?"
    r"|\d{4}([ -])\d{6}\2\d{4,5})(?![\w-]|\.\d)(?! \d{4} \d{4}(?!\d))"
)
# Prefixes and lengths of the networks (ISO/IEC 7812).
_ISSUERS: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...] = (
    (("4",), (16, 19)),
    (tuple(map(str, (*range(51, 56), *range(2221, 2721)))), (16,)),
    (("34", "37"), (15,)),
    (("6011", "65", *map(str, range(644, 650))), (16, 19)),
    ((*map(str, range(300, 306)), "36", "38", "39"), (14,)),
    (tuple(map(str, range(3528, 3590))), (16, 17, 18, 19)),
    (("62",), (16, 17, 18, 19)),
    (("5018", "5020", "5038", "6304", "6759", "6761", "6762", "6763"), (16,)),
)
_DIGITS = re.compile(r"\d[\d -]{11,}")
# What may stand in a run of digits; beyond ASCII too much is better than too little.
_RUNS = bytes(
    48 if code in b"0123456789 -" or code >= 0x80 else 120 for code in range(256)
)
_RUN = b"0" * 12
_LEAST_DIGITS = 13
_NUMERALS = b"0123456789"
# The letters that patterns take for those of ASCII when case does not count, as
# hints are written.
_FOLDED = str.maketrans({"\u017f": "s", "\u0130": "i", "\u0131": "i", "\u212a": "k"})


def mask_text(text: str) -> str:
    """Return *text* with everything that looks like a secret replaced by ``***``.

    Names stay (``password=***``), so that the line can still be read. A masked
    text is left as it is when it is masked again.

    Only rules whose hint is found are applied. The invariant: a rule whose hint is
    not found would change nothing, so a text without hints and without a long run
    of digits is returned as it is.
    """
    data = text.encode(*_UTF8)
    for rule in _hinted(data.translate(None, _NUMERALS)):
        text = rule.pattern.sub(rule.replace, text)
    # A run of bytes is found in a twentieth of the time of a pattern; masking
    # above puts none there that was not there before.
    if _RUN in data.translate(_RUNS) and _DIGITS.search(text) is not None:
        text = _CARD.sub(_mask_card, text)
    return text


def _hinted(words: bytes) -> tuple[Rule, ...]:
    """Return the rules that may change a text, given its words without digits."""
    # Word by word, through a cache that answers for the words of other lines too.
    if not any(map(_hints_of_word, words.split())):
        return ()
    found = frozenset[int]().union(*map(_hints_of_word, words.split()))
    return tuple(_RULES[at] for at in sorted(found))


# Most errors differ from an earlier one in their numbers only.
_common_hinted = lru_cache(maxsize=4096)(_hinted)


@lru_cache(maxsize=1 << 15)
def _hints_of_word(word: bytes) -> frozenset[int]:
    lower = word.decode(*_UTF8).translate(_FOLDED).lower()
    return frozenset(
        at for at, rule in enumerate(_RULES) if rule.hint.search(lower) is not None
    )


def is_plain(message: str, context: Mapping[Any, Any] | None) -> bool:
    """Return whether an entry can be stored as it is, in one quick look.

    True for most of what a log holds: short text in which nothing hints at a
    secret. If True, masking and repairing would change nothing; False decides
    nothing, and everything must be looked at.
    """
    text = message
    if context:
        if not _TEXT.issuperset(map(type, context)):
            return False
        texts = list(context.values())
        kinds = set(map(type, texts))
        if kinds != _TEXT:
            if not kinds <= _SIMPLE:
                return False
            numbers = [value for value in texts if type(value) is int]
            if numbers and not _LEAST <= min(numbers) <= max(numbers) <= _MOST:
                return False
            texts = [value for value in texts if type(value) is str]
        text = "\n".join([message, *context, *texts])
    if len(text) >= _MAX_VALUE or not text.isascii() or "\x00" in text:
        return False
    data = text.encode()
    words = data.translate(None, _NUMERALS)
    if (_common_hinted if len(words) < _COMMON else _hinted)(words):
        return False
    return (
        len(data) - len(words) < _LEAST_DIGITS
        or _RUN not in data.translate(_RUNS)
        or _DIGITS.search(text) is None
        or _CARD.sub(_mask_card, text) == text
    )


def clean_context(
    context: Mapping[Any, Any],
) -> tuple[JsonObject | None, tuple[str, ...]]:
    """Return *context* repaired and masked, and what was done to it."""
    try:
        repaired, done = repair_context(context)
    except Exception:  # a mapping may do anything when it is read
        repaired = {"value": f"<unreadable {type(context).__name__}>"}
        done = ("context: unreadable value replaced",)
    masked = mask_context(repaired)
    return (masked if isinstance(masked, dict) else None), done


def _mask_card(match: re.Match[str]) -> str:
    text = match[0]
    for end in (len(text), 19):  # four groups, and perhaps the code or a date
        if _is_card(text[:end]):
            return MASK + text[end:]
    return text


def _is_card(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    number = "".join(map(str, digits))
    doubled = [d * 2 - 9 * (d > 4) for d in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and any(
        number.startswith(prefixes) and len(number) in lengths
        for prefixes, lengths in _ISSUERS
    )


def mask_context(value: Json) -> Json:
    """Return *value* with secrets masked, by key as well as by shape."""
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, list):
        # A name and its value may stand side by side: headers, arguments.
        named = [False, *(_names_secret(item) for item in value)]
        return [
            MASK if after and isinstance(item, str) and item else mask_context(item)
            for after, item in zip(named, value, strict=False)
        ]
    if isinstance(value, dict):
        holds = any(_names_secret(value.get(name)) for name in ("name", "key"))
        return {
            mask_text(key): MASK
            if _holds_secret(key, item) or (holds and key == "value" and item)
            else mask_context(item)
            for key, item in value.items()
        }
    return value


def _names_secret(item: Json) -> bool:
    if not isinstance(item, str) or not _NAME_ONLY.match(item):
        return False
    return _SECRET_KEY.search(item) is not None


def _holds_secret(key: str, item: Json) -> bool:
    if item in (None, "") or isinstance(item, bool):
        return False
    if _SECRET_KEY.search(key) is not None:
        return _ABOUT.search(key) is None
    return not isinstance(item, int | float) and _SECRETS_KEY.search(key) is not None


def repair_text(text: str, *, limit: int = MAX_TEXT) -> tuple[str, tuple[str, ...]]:
    r"""Return *text* as PostgreSQL can store it, and what was done to it.

    NUL becomes ``\x00``, a lone surrogate ``\udcXX`` (as text), and the middle
    of a text longer than *limit* characters gives way to a note.
    """
    done: list[str] = []
    if "\x00" in text:
        done.append("NUL escaped")
    try:
        text.encode()
    except UnicodeEncodeError:
        done.append("surrogates escaped")
    if done:
        text = _LOST.sub(_escape, text)
    if len(text) > limit:
        done.append(f"shortened from {len(text)} characters")
        head, tail = limit // 2, limit // 2 - 40
        text = f"{text[:head]}\n… {len(text) - head - tail} characters …\n" + (
            text[-tail:] if tail > 0 else ""
        )
    return text, tuple(done)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"


def repair_context(
    context: Mapping[Any, Any] | None,
) -> tuple[JsonObject | None, tuple[str, ...]]:
    """Return *context* as a JSON object of bounded size, and what was done to it.

    Values that JSON has no word for are kept as text; NaN and infinity too.
    Never raises: a value whose ``repr`` fails is named by its type.
    """
    if context is None:
        return None, ()
    done: set[str] = set()
    plain = _plain(context, done, _MAX_VALUE, 0)
    if not isinstance(plain, dict):
        plain = {"value": plain}
    size = len(orjson.dumps(plain))
    if size > MAX_CONTEXT_BYTES:
        done.add(f"context shortened from {size} bytes")
        plain = _fit(plain)
    return plain, tuple(sorted(done))


def _fit(context: JsonObject) -> JsonObject:
    """Shorten every value, then drop the last ones, until the object fits."""
    kept: JsonObject = {}
    left = MAX_CONTEXT_BYTES - 1024
    for key, value in context.items():
        text = orjson.dumps(value).decode()
        short = value if len(text) <= _SHORT_VALUE * 4 else text[:_SHORT_VALUE] + "…"
        left -= len(orjson.dumps({key: short}))
        if left < 0:
            kept["…"] = f"{len(context) - len(kept)} more"
            break
        kept[key] = short
    return kept


def _plain(value: object, done: set[str], limit: int, depth: int) -> Json:
    """Return *value* as JSON has it; what it has no word for becomes text."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return value
    for kind, convert in _SCALARS.items():
        if isinstance(value, kind):
            return convert(value, done, limit)
    if depth >= _MAX_DEPTH:
        done.add("context: too deep, kept as text")
        return _text_of(value, done, limit)
    try:
        return _plain_container(value, done, limit, depth + 1)
    except Exception:  # a value may refuse to be looked at
        return _unreadable(value, done)


def _plain_container(value: object, done: set[str], limit: int, depth: int) -> Json:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        value = {name: getattr(value, name, None) for name in names}
    if isinstance(value, Mapping):
        return {
            _key(key, done): _plain(item, done, limit, depth)
            for key, item in _first(value.items(), done)
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, done, limit, depth) for item in _first(value, done)]
    done.add("context: unserialisable value kept as text")
    return _text_of(value, done, limit)


def _plain_str(value: str, done: set[str], limit: int) -> Json:
    text, changes = repair_text(str(value), limit=limit)
    done.update(f"context: {change}" for change in changes)
    return text


def _plain_int(value: int, done: set[str], limit: int) -> Json:
    if _LEAST <= value <= _MOST:
        return int(value)
    done.add("context: huge integer kept as text")
    return _text_of(value, done, limit)


def _plain_float(value: float, done: set[str], _limit: int) -> Json:
    if math.isfinite(value):
        return float(value)
    done.add("context: NaN or infinity kept as text")
    return str(float(value))


def _plain_bytes(
    value: bytes | bytearray | memoryview, done: set[str], limit: int
) -> Json:
    return _plain_str(bytes(value).decode("utf-8", "replace"), done, limit)


def _plain_time(value: datetime | date | time, _done: set[str], _limit: int) -> Json:
    return value.isoformat()


def _plain_text(value: object, _done: set[str], _limit: int) -> Json:
    return str(value)


_SCALARS: dict[type, Callable[[Any, set[str], int], Json]] = {
    str: _plain_str,
    int: _plain_int,
    float: _plain_float,
    bytes: _plain_bytes,
    bytearray: _plain_bytes,
    memoryview: _plain_bytes,
    UUID: _plain_text,
    datetime: _plain_time,
    date: _plain_time,
    time: _plain_time,
    timedelta: _plain_text,
}


def _first(items: Any, done: set[str]) -> Any:
    for at, item in enumerate(items):
        if at >= _MAX_ITEMS:
            done.add(f"context: only the first {_MAX_ITEMS} items kept")
            return
        yield item


def _key(key: object, done: set[str]) -> str:
    text, changes = repair_text(
        key if isinstance(key, str) else _text_of(key, done, _SHORT_VALUE),
        limit=_SHORT_VALUE,
    )
    done.update(f"context: {change}" for change in changes)
    return text


def _text_of(value: object, done: set[str], limit: int) -> str:
    try:
        text = str(value) if isinstance(value, int) else repr(value)
    except Exception:  # a value may refuse to be looked at
        return _unreadable(value, done)
    return repair_text(text, limit=limit)[0]


def _unreadable(value: object, done: set[str]) -> str:
    done.add("context: unreadable value replaced")
    return f"<unreadable {type(value).__name__}>"

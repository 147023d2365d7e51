"""MkDocs hooks: add the root's Markdown files and one API page per module or package of e3d_jax.

The root's files stay readable in the repository: their links are rewritten for the site only.
"""

import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "MODEL_CARD.md": "MODEL_CARD.md",
    "ATTRIBUTION.md": "ATTRIBUTION.md",
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
# A docstring's :func:`e3d_jax.files.join`, as Markdown renders it.
ROLE = re.compile(r":(?:mod|class|func|meth|attr|data|exc):<code>([^<]+)</code>")


def rooms() -> list[str]:
    """Return the public modules and packages of e3d_jax, by name."""
    found = [
        path.stem for path in (ROOT / "e3d_jax").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    return sorted(name for name in found if not name.startswith("_"))


def on_config(config):
    """List the API pages in the navigation."""
    for item in config.nav:
        if "API" in item:
            item["API"] = [{name: f"api/{name}.md"} for name in rooms()]
    return config


def on_files(files, config):
    """Add the pages that are not files in docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    for name in rooms():
        files.append(File.generated(config, f"api/{name}.md", content=f"# {name}\n\n::: e3d_jax.{name}\n"))
    return files


def on_page_markdown(markdown, page, config, files):
    """Point links between files of the repository at the pages made from them."""
    markdown = re.sub(r"\]\((?:\.\./)?docs/", "](", markdown)
    for source, target in PAGES.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(source)}", f"]({target}", markdown)
    return markdown


def on_page_content(html, page, config, files):
    """Turn the roles in docstrings into links where the target is documented."""
    return ROLE.sub(r'<autoref identifier="\1" optional><code>\1</code></autoref>', html)

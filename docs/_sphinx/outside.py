"""Links to files that are not part of the site, such as ../CONTRIBUTING.md.

Where the repository is browsed they are links; the site gives the name of the file.
"""

import pathlib
import re

_LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)[^)]*\)")


def _name_files(app, docname, source) -> None:
    top = pathlib.Path(app.srcdir)

    def name(link: re.Match) -> str:
        path = (top / docname).parent.joinpath(link[2]).resolve()
        if path.is_relative_to(top):
            return link[0]
        file = path.relative_to(top.parent)
        return f"`{file}`" if link[1] in str(file) else f"{link[1]} (`{file}`)"

    source[0] = _LINK.sub(name, source[0])


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", _name_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

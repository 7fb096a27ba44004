"""Adds the pages of the site that are no Markdown file of this folder.

mkdocs calls the functions `on_…`. The README is the home page; the notebook,
and every file outside docs/ that a page links to, becomes a page; the
reference is made from docstrings and from the fields of a config. Links are
written as GitHub follows them, from file to file, and changed here into links
from page to page.
"""

import json
import pathlib
import posixpath
import re

import griffe
from mkdocs.structure.files import File
from pygments.formatters import HtmlFormatter

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIBRARIES = ('optim', 'models', 'losses', 'certify')
LANGUAGES = {'.py': 'python', '.sh': 'bash'}

LINK = re.compile(r'\]\(([^)#:\s]+)(#[^)\s]*)?\)')
EXAMPLE = re.compile(r'^>>> .*(?:\n.+)*', re.MULTILINE)

FIELDS_INTRODUCTION = """# Config fields

Every field of a config with its default, its meaning and what is allowed, as
`python -m lipnext_jax.main --config=… --mode=config` prints them. Each can be
set on the command line: `--config.model.depth=16`.
"""


# ── Pages and links ──────────────────────────────────────────────────────────


def page_of(path):
  """Returns what shows a file of the repository on the site.

  >>> page_of('README.md'), page_of('docs/optimizer.md')
  ('index.md', 'optimizer.md')
  >>> page_of('docs/quickstart.ipynb'), page_of('configs/digits.py')
  ('quickstart.md', 'source/configs/digits.py.md')
  """
  if path == 'README.md':
    return 'index.md'
  if path.startswith('docs/'):
    return re.sub(r'\.ipynb$', '.md', path.removeprefix('docs/'))
  return f'source/{path}' if path.endswith('.md') else f'source/{path}.md'


def find_links(path, markdown):
  """Yields (match, target) for each link from a file to another one."""
  for match in LINK.finditer(markdown):
    target = posixpath.join(posixpath.dirname(path), match[1])
    target = posixpath.normpath(target)
    if (ROOT / target).is_file():
      yield match, target


def relink(path, markdown):
  """Turns the links from a file to other files into links between pages.

  >>> relink('README.md', '[Models](docs/models.md#blocks), [me](LICENSE)')
  '[Models](models.md#blocks), [me](source/LICENSE.md)'
  """
  folder = posixpath.dirname(page_of(path))
  parts, end = [], 0
  for match, target in find_links(path, markdown):
    link = posixpath.relpath(page_of(target), folder or '.')
    parts += [markdown[end : match.start()], f']({link}{match[2] or ""})']
    end = match.end()
  return ''.join(parts) + markdown[end:]


# ── What pages are made of ───────────────────────────────────────────────────


def fence(text, language):
  """Makes a block of code, which nothing in the text can close."""
  longest = max(map(len, re.findall('`+', text)), default=0)
  bars = '`' * max(3, longest + 1)
  return f'{bars}{language}\n{text.rstrip()}\n{bars}'


def notebook_markdown(path):
  """Returns a notebook, with its outputs, as Markdown."""
  parts = []
  for cell in json.loads(path.read_text())['cells']:
    source = ''.join(cell['source'])
    is_code = cell['cell_type'] == 'code'
    parts.append(fence(source, 'python') if is_code else source)
    for output in cell.get('outputs', ()):
      data = output.get('data', {})
      if 'image/png' in data:
        image = ''.join(data['image/png']).replace('\n', '')
        parts.append(f'![Figure](data:image/png;base64,{image})')
      else:
        text = ''.join(output.get('text') or data['text/plain'])
        parts.append(fence(text, 'text'))
  return '\n\n'.join(parts)


def file_markdown(path):
  """Returns a file of the repository as the Markdown of a page."""
  if path.endswith('.ipynb'):
    return notebook_markdown(ROOT / path)
  text = (ROOT / path).read_text()
  if path.endswith('.md'):
    return text
  language = LANGUAGES.get(posixpath.splitext(path)[1], 'text')
  return f'# {path}\n\n{fence(text, language)}'


def library_markdown(library):
  """Returns the page of a library, which mkdocstrings completes."""
  return f'# lipnext_jax.{library}\n\n::: lipnext_jax.{library}\n'


def fields_markdown():
  """Returns the page about the fields of a config."""
  from lipnext_jax import config  # Slow to import.

  # Each is "name = value" and, in lines that are indented, its meaning.
  entries = re.split(r'\n(?=\w)', config.describe(config.default_config()))
  sections: dict[str, list[str]] = {'the run': []}
  for entry in entries:
    head, meaning = entry.split('\n    ', 1)
    name, value = head.split(' = ', 1)
    section = name.split('.')[0] if '.' in name else 'the run'
    meaning = re.sub('([*_<])', r'\\\1', meaning)
    text = f'`{name}` = `{" ".join(value.split())}`\n:   {meaning}'
    sections.setdefault(section, []).append(text)
  parts = [FIELDS_INTRODUCTION]
  for section, texts in sections.items():
    parts += [f'## {section.capitalize()}', *texts]
  return '\n\n'.join(parts)


def highlight_css():
  """Returns the colours of code, on light and on dark pages."""
  light = HtmlFormatter(style='friendly').get_style_defs('.highlight')
  dark = HtmlFormatter(style='github-dark').get_style_defs(
    '[data-bs-theme=dark] .highlight'
  )
  return f'{light}\n{dark}\n'


# ── What mkdocs and mkdocstrings call ────────────────────────────────────────


def on_files(files, *, config):
  """Adds pages: the reference, the README, and whatever pages link to."""

  def add(uri, content):
    files.append(File.generated(config, uri, content=content))

  add('highlight.css', highlight_css())
  add('reference/config.md', fields_markdown())
  for library in LIBRARIES:
    add(f'reference/{library}.md', library_markdown(library))
  here = [f'docs/{file.src_uri}' for file in files.documentation_pages()]
  here = [path for path in here if (ROOT / path).is_file()]
  queue = ['README.md', 'docs/quickstart.ipynb', *here]
  for path in queue:  # It grows.
    markdown = file_markdown(path)
    if path not in here:
      add(page_of(path), relink(path, markdown))
    if path.endswith(('.md', '.ipynb')):
      targets = {target for _, target in find_links(path, markdown)}
      queue += sorted(t for t in targets - {*queue} if page_of(t)[-3:] == '.md')
  return files


def on_page_markdown(markdown, *, page, **kwargs):
  """Changes the links of the pages that are files of docs/."""
  del kwargs
  path = f'docs/{page.file.src_uri}'
  return relink(path, markdown) if (ROOT / path).is_file() else markdown


class FenceDoctests(griffe.Extension):
  """Puts the examples of docstrings into blocks of code."""

  def on_object(self, *, obj, **kwargs):
    """Changes the docstring of an object."""
    del kwargs
    if obj.docstring:
      obj.docstring.value = EXAMPLE.sub(
        lambda match: fence(match[0], 'pycon'), obj.docstring.value
      )

"""A hook of MkDocs: the README is the home page, and files outside docs/ keep the links that work on GitHub."""

import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
# Not pages of the site: links to them show the path alone.
_SOURCES = re.compile(r'\[([^\]]+)\]\((?:\.\./)?(?:launch/[^)]*|CITATION\.cff|LICENSE)\)')


def on_files(files, config):
  """Adds the README, the changelog and the measurements with their pictures."""
  outside = [*ROOT.glob('benchmarks/*.md'), *ROOT.glob('benchmarks/*.png'), *ROOT.glob('benchmarks/*.gif'),
             ROOT / 'CHANGELOG.md', ROOT / 'CONTRIBUTING.md']
  for path in outside:
    files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
  files.append(File.generated(config, 'index.md', abs_src_path=str(ROOT / 'README.md')))
  return files


def on_page_markdown(markdown, page, config, files):
  """Rewrites links relative to the repository as links relative to the site."""
  if page.file.src_uri == 'index.md':
    markdown = markdown.replace('](docs/', '](')
  elif '/' not in page.file.src_uri:
    markdown = markdown.replace('](../', '](')
  return _SOURCES.sub(r'\1', markdown)

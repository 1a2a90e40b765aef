"""A local stand-in for the Hugging Face Hub: the requests of huggingface_hub that upload and download models."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading

from huggingface_hub import constants

TOKEN = 'hf_aSecretOfTheTests'


class Repository:
  """The commits of one repository: a list of {path: bytes}, and the paths stored as LFS objects."""

  def __init__(self, private):
    self.private, self.commits, self.messages, self.large = private, [{}], [''], set()

  def sha(self, number=-1):
    return hashlib.sha1(f'{number % len(self.commits)}'.encode()).hexdigest()

  def number(self, revision):
    shas = [self.sha(number) for number in range(len(self.commits))]
    return len(shas) - 1 if revision == 'main' else shas.index(revision) if revision in shas else None


class HubServer(http.server.ThreadingHTTPServer):
  """Serves repositories; `refusal`, if set, is the status of every answer.

  Attributes:
    repositories: by OWNER/NAME.
    requests: (method, path) in order.
    owners: names whose repositories the token may write.
  """

  daemon_threads = True

  def __init__(self):
    super().__init__(('127.0.0.1', 0), Handler)
    self.repositories, self.requests, self.objects, self.refusal, self.owners = {}, [], {}, None, {'me'}

  @property
  def url(self):
    return f'http://127.0.0.1:{self.server_address[1]}'

  def requested(self, pattern):
    return sum(bool(re.search(pattern, f'{method} {path}')) for method, path in self.requests)


class Handler(http.server.BaseHTTPRequestHandler):

  def log_message(self, *arguments):
    pass

  def answer(self, content=b'', status=200, **headers):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    self.send_response(status)
    for name, value in {'Content-Length': str(len(body)), **headers}.items():
      self.send_header(name.replace('_', '-'), value)
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(body)

  def do_GET(self):
    server, path = self.server, self.path.partition('?')[0]
    server.requests.append((self.command, path))
    body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    known = self.headers.get('Authorization') == f'Bearer {TOKEN}'
    if server.refusal:
      return self.answer({'error': f'{self.headers.get("Authorization")} is refused'}, server.refusal)
    if 'Authorization' in self.headers and not known:
      return self.answer(
          {'error': 'Invalid credentials'}, 401, X_Error_Message='Invalid credentials in Authorization header')
    if path == '/api/validate-yaml':
      return self.answer({'errors': [], 'warnings': []})
    if match := re.fullmatch('/lfs/(.*)', path):
      assert hashlib.sha256(body).hexdigest() == match[1]
      server.objects[match[1]] = body
      return self.answer()
    if not known and (self.command == 'POST' or path == '/api/whoami-v2'):
      return self.answer({'error': 'no token'}, 401)
    if path == '/api/whoami-v2':
      return self.answer({'name': 'me', 'type': 'user'})
    if path == '/api/repos/create':
      return self.create(**json.loads(body))
    match = re.fullmatch(r'(?:/api/models)?/([\w.-]+/[\w.-]+?)(\.git/.*|/.*)?', path)
    repository = match and server.repositories.get(match[1])
    if repository is None or repository.private and not known:
      return self.answer({'error': 'not found'}, 404, X_Error_Code='RepoNotFound')
    return self.serve(match[1], repository, (match[2] or '').strip('/').split('/'), body)

  do_HEAD = do_POST = do_PUT = do_GET

  def create(self, name, organization, type='model', visibility=None, private=False):
    full = f'{organization}/{name}'
    url = {'url': f'{self.server.url}/{full}'}
    if organization not in self.server.owners:
      return self.answer({'error': f'{TOKEN} may not'}, 403)
    if full in self.server.repositories:
      return self.answer(url, 409)
    self.server.repositories[full] = Repository(private or visibility == 'private')
    return self.answer(url)

  def serve(self, name, repository, parts, body):
    what, *rest = parts
    if what == 'preupload':
      return self.answer({'files': [
          {'path': file['path'], 'shouldIgnore': False,
           'uploadMode': 'lfs' if file['path'].endswith(('.safetensors', '.png')) else 'regular'}
          for file in json.loads(body)['files']]})
    if what == '.git':
      return self.answer({'transfer': 'basic', 'objects': [
          {**each, 'actions': {'upload': {'href': f'{self.server.url}/lfs/{each["oid"]}'}}}
          for each in json.loads(body)['objects']]})
    if what == 'commit':
      return self.commit(name, repository, [json.loads(line) for line in body.splitlines()])
    revision = rest[0] if rest else 'main'
    number = repository.number(revision)
    if number is None:
      return self.answer({'error': 'no revision'}, 404, X_Error_Code='RevisionNotFound')
    files, sha = repository.commits[number], repository.sha(number)
    if what == 'tree':
      return self.answer([self.entry(path, files[path], repository) for path in files])
    if what == 'resolve':
      content = files[rest[1]]
      entry = self.entry(rest[1], content, repository)
      return self.answer(content, ETag=f'"{entry.get("lfs", entry)["oid"]}"', X_Repo_Commit=sha)
    return self.answer({'id': name, 'sha': sha, 'private': repository.private, 'tags': [], 'downloads': 0, 'likes': 0,
                        'siblings': [{'rfilename': path} for path in files]})

  def entry(self, path, content, repository):
    blob = hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()
    entry = {'type': 'file', 'path': path, 'size': len(content), 'oid': blob}
    if path in repository.large:
      entry['lfs'] = {'oid': hashlib.sha256(content).hexdigest(), 'size': len(content), 'pointerSize': 1}
    return entry

  def commit(self, name, repository, lines):
    files = dict(repository.commits[-1])
    for line in lines[1:]:
      value = line['value']
      if line['key'] == 'file':
        files[value['path']] = base64.b64decode(value['content'])
      else:
        assert line['key'] == 'lfsFile'
        files[value['path']] = self.server.objects[value['oid']]
        repository.large.add(value['path'])
    repository.commits.append(files)
    repository.messages.append(lines[0]['value']['summary'])
    return self.answer({'commitUrl': f'{self.server.url}/{name}/commit/{repository.sha()}',
                        'commitOid': repository.sha(), 'success': True})


@contextlib.contextmanager
def running():
  """A server that listens until the end of the block."""
  with HubServer() as server:
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True)
    thread.start()
    try:
      yield server
    finally:
      server.shutdown()


@contextlib.contextmanager
def connected(patch, folder):
  """A running server, to which this process is logged in, with an empty cache in `folder`.

  Sets the constants that huggingface_hub reads from the environment at import, by a `pytest.MonkeyPatch`.
  """
  patch.setenv('HF_TOKEN', TOKEN)
  with running() as server:
    for name, value in (
        ('HF_HUB_DISABLE_XET', True), ('HF_TOKEN_PATH', str(folder / 'no_token')),
        ('HF_HUB_CACHE', str(folder / 'cache')), ('ENDPOINT', server.url),
        ('HUGGINGFACE_CO_URL_TEMPLATE', server.url + '/{repo_id}/resolve/{revision}/{filename}')):
      patch.setattr(constants, name, value)
    yield server

'use strict'
// Run by `node -r`, before ilp-protocol-stream 2.7.1. Its stream class assigns `this.closed`, which a Duplex stream of
// Node 18 and later defines as a getter without a setter. Renaming the package's own property as it is loaded mends it.

const Module = require('module')
const path = require('path')

const STREAM = path.join('ilp-protocol-stream', 'dist', 'src', 'stream.js')
const compile = Module.prototype._compile

Module.prototype._compile = function (source, filename) {
  const renamed = filename.endsWith(STREAM) ? source.replace(/\bthis\.closed\b/g, 'this._isClosed') : source
  return compile.call(this, renamed, filename)
}

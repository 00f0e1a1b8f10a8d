'use strict'
// An HTTP server for a plugin to listen with, on the loopback interface alone and on any free port.

const { once } = require('events')
const http = require('http')

// Gives the plugin's options, and a promise of the port that the plugin binds when it connects. The plugins hand
// `port` to the HTTP server as it is, so an object can name the interface too.
function onLoopback (port = 0) {
  const server = http.createServer()
  const bound = once(server, 'listening').then(() => server.address().port)
  return { options: { port: { port, host: '127.0.0.1' }, wsOpts: { server } }, bound }
}

module.exports = { onLoopback }

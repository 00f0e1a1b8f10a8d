'use strict'
// The plugin that a URL asks for, which has a name and a token in it.

const BtpPlugin = require('ilp-plugin-btp')
const HttpPlugin = require('ilp-plugin-http')

// Over HTTP, the peer reaches this end at `port` of the loopback interface and shows the same token.
function makePlugin ({ url, port = 0 }) {
  const { protocol, origin, username, password } = new URL(url)
  if (protocol !== 'http:') return new BtpPlugin({ server: url })
  return new HttpPlugin({
    incoming: { port: { port, host: '127.0.0.1' }, staticToken: password },
    outgoing: { url: origin, staticToken: password, name: username }
  })
}

module.exports = { makePlugin }

'use strict'
// A real ilp-plugin-http, driven by JSON lines (see json_lines.js).

const { once } = require('events')
const HttpPlugin = require('ilp-plugin-http')
const IlpPacket = require('ilp-packet')
const { serve } = require('./json_lines.js')
const { reversed, sending } = require('./sending.js')

// The plugin passes its port to Node's server as it is, so an object can name the interface too.
async function open (options) {
  const { port = 0, ...incoming } = options.incoming
  const name = (options.outgoing || {}).name || 'peer'
  const plugin = new HttpPlugin({
    ...options,
    incoming: { ...incoming, port: { port, host: '127.0.0.1' } },
    outgoing: { url: 'http://127.0.0.1:1', staticToken: 'unused', ...options.outgoing, name }
  })
  await plugin.connect()
  if (!plugin._httpServer.listening) await once(plugin._httpServer, 'listening')
  return { plugin, port: plugin._httpServer.address().port }
}

function drive () {
  let plugin
  let handled = 0

  const handlers = {
    reverse: () => async (data) => reversed(data),
    fulfill: ({ hex }) => async () => Buffer.from(hex, 'hex'),
    throw: ({ message }) => async () => { throw new Error(message) },
    silent: () => () => new Promise(() => {})
  }

  serve({
    async open ({ options }) {
      const opened = await open(options)
      plugin = opened.plugin
      return { port: opened.port }
    },
    async handleData ({ kind, ...options }) {
      plugin.deregisterDataHandler()
      const handler = handlers[kind](options)
      plugin.registerDataHandler((data) => {
        handled += 1
        return handler(data)
      })
    },
    ...sending(() => plugin),
    async decode ({ hex }) {
      return IlpPacket.deserializeIlpPacket(Buffer.from(hex, 'hex'))
    },
    async stats () {
      return { handled, connected: plugin.isConnected() }
    },
    async disconnect () {
      await plugin.disconnect()
    }
  })
}

module.exports = { HttpPlugin, open }

if (require.main === module) drive()

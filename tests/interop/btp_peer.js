'use strict'
// A real ilp-plugin-btp, driven by JSON lines (see json_lines.js).

const crypto = require('crypto')
const BtpPlugin = require('ilp-plugin-btp')
const { say, serve } = require('./json_lines.js')
const { onLoopback } = require('./loopback_server.js')
const { reversed, sending } = require('./sending.js')

const TYPE_TRANSFER = 7

class SettlingPlugin extends BtpPlugin {
  constructor (...args) {
    super(...args)
    this.received = 0n
    this.transfers = 0
  }

  async sendMoney (amount) {
    await this._call('', {
      type: TYPE_TRANSFER,
      requestId: crypto.randomInt(2 ** 32),
      data: { amount, protocolData: [] }
    })
  }

  async _handleMoney (from, { data: { amount } }) {
    if (this._moneyHandler) await this._moneyHandler(amount)
    this.received += BigInt(amount)
    this.transfers += 1
    return []
  }
}

// `bound` resolves when the port is bound; the plugin's own connect() goes on until the first peer has come.
function listen (Plugin, { port, token, onConnectFailed }) {
  const { options, bound } = onLoopback(port)
  const plugin = new Plugin({ listener: { ...options, secret: token } })
  plugin.connect().catch(onConnectFailed)
  plugin._wss.on('error', () => {}) // ws repeats the server's error; nobody listening would end the process
  return { plugin, bound }
}

function drive () {
  let plugin
  let handled = 0

  const handlers = {
    echo: () => async (data) => data,
    reverse: () => async (data) => {
      for (let turns = data.length ? data[data.length - 1] % 7 : 0; turns > 0; turns--) await new Promise(setImmediate)
      return reversed(data)
    },
    throw: ({ name, message }) => async () => { throw Object.assign(new Error(message), { name }) },
    callback: () => async (data) =>
      data.length ? Buffer.concat([data.subarray(0, 1), await plugin.sendData(data.subarray(1))]) : data,
    silent: () => () => {
      say({ event: 'held' })
      return new Promise(() => {})
    }
  }

  function adopt (made) {
    plugin = made
    for (const event of ['connect', 'disconnect']) plugin.on(event, () => say({ event }))
  }

  const counted = (handler) => (data) => {
    handled += 1
    return handler(data)
  }

  serve({
    async listen ({ port, token, settlement }) {
      const made = listen(settlement ? SettlingPlugin : BtpPlugin, {
        port,
        token,
        onConnectFailed: (error) => say({ event: 'aborted', message: error.message })
      })
      adopt(made.plugin)
      return { port: await made.bound }
    },
    async connect ({ url, settlement }) {
      adopt(new (settlement ? SettlingPlugin : BtpPlugin)({ server: url }))
      await plugin.connect()
    },
    async handleData ({ kind, ...options }) {
      plugin.deregisterDataHandler()
      if (kind !== 'none') plugin.registerDataHandler(counted(handlers[kind](options)))
    },
    async handleMoney ({ kind, ...options }) {
      plugin.deregisterMoneyHandler()
      if (kind !== 'none') plugin.registerMoneyHandler(handlers[kind](options))
    },
    ...sending(() => plugin),
    async sendMoney ({ amount }) {
      await plugin.sendMoney(amount)
    },
    async stats () {
      const { received, transfers } = plugin
      return { handled, connected: plugin.isConnected(), received: String(received), transfers }
    },
    async disconnect () {
      await plugin.disconnect()
    }
  })
}

module.exports = { BtpPlugin, listen }

if (require.main === module) drive()

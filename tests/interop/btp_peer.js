'use strict'
// A real ilp-plugin-btp, driven by JSON lines: commands come on stdin, replies and events leave on stdout.
//
//   in   {"id": 1, "do": "listen", "token": "...", "port": 0}
//   out  {"id": 1, "ok": {"port": 43210}}   or   {"id": 1, "error": {"message": "...", "code": "F00", ...}}
//   out  {"event": "connect"}
//
// The process ends when stdin does, so that it cannot outlive whoever started it.

const crypto = require('crypto')
const http = require('http')
const readline = require('readline')
const BtpPlugin = require('ilp-plugin-btp')

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

// Resolves when the port is bound; the plugin's own connect() goes on until the first peer has come.
// The plugin hands `listener.port` to the HTTP server as it is, so an object can name the interface too.
function listen (Plugin, { port = 0, token, onConnectFailed }) {
  const server = http.createServer()
  const plugin = new Plugin({
    listener: { port: { port, host: '127.0.0.1' }, secret: token, wsOpts: { server } }
  })
  return {
    plugin,
    bound: new Promise((resolve, reject) => {
      server.once('error', reject)
      server.once('listening', () => resolve(server.address().port))
      plugin.connect().catch(onConnectFailed)
      plugin._wss.on('error', reject) // ws repeats the server's error; nobody listening would end the process
    })
  }
}

const reversed = (data) => Buffer.from(data).reverse()

function drive (input, output) {
  const say = (message) => output.write(JSON.stringify(message) + '\n')
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

  const commands = {
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
    async sendData ({ hex }) {
      return { hex: (await plugin.sendData(Buffer.from(hex, 'hex'))).toString('hex') }
    },
    // All at once, no two alike; each must come back reversed.
    async sendMany ({ count, size }) {
      const requests = Array.from({ length: count }, (_, number) => {
        const data = Buffer.alloc(size, number)
        data.writeUInt32BE(number)
        return data
      })
      const answers = await Promise.all(requests.map((data) => plugin.sendData(data)))
      return { matched: answers.filter((answer, number) => answer.equals(reversed(requests[number]))).length }
    },
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
  }

  // The plugin wraps a peer's BTP error as the JSON text of an Error's message.
  function told (error) {
    try {
      const { code, name, triggeredAt, data } = JSON.parse(error.message)
      return { message: 'the peer answered with an error', code, name, triggeredAt, data }
    } catch (_) {
      return { message: String(error.message) }
    }
  }

  const lines = readline.createInterface({ input })
  lines.on('line', (line) => {
    const { id, do: command, ...options } = JSON.parse(line)
    commands[command](options).then(
      (ok) => say({ id, ok: ok || {} }),
      (error) => say({ id, error: told(error) })
    )
  })
  lines.on('close', () => process.exit(0))
  say({ event: 'ready' })
}

module.exports = { BtpPlugin, listen }

if (require.main === module) drive(process.stdin, process.stdout)

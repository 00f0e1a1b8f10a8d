'use strict'
// One end of ilp-protocol-stream payments over a plugin of its own, driven by JSON lines (see json_lines.js).

const { createConnection, createServer } = require('ilp-protocol-stream')
const { makePlugin } = require('./any_plugin.js')
const { say, serve } = require('./json_lines.js')

const received = []
let server

function invoice () {
  const { destinationAccount, sharedSecret } = server.generateAddressAndSecret()
  return { address: server.serverAccount, destination: destinationAccount, secret: sharedSecret.toString('hex') }
}

serve({
  // Take whatever payments come; tells where to send one.
  async receive ({ url, port }) {
    server = await createServer({ plugin: makePlugin({ url, port }) })
    server.on('connection', (connection) => connection.on('stream', (stream) => {
      stream.setReceiveMax('18446744073709551615')
      stream.on('money', (amount) => received.push(amount))
      stream.once('end', () => say({ event: 'paid' }))
    }))
    return invoice()
  },
  // Tells where to send another payment.
  async invoice () {
    return invoice()
  },
  // Tells the amount of each packet that was taken since this was last asked.
  async received () {
    return { amounts: received.splice(0) }
  },
  async pay ({ url, port, destination, secret, amount }) {
    const connection = await createConnection({
      plugin: makePlugin({ url, port }),
      destinationAccount: destination,
      sharedSecret: Buffer.from(secret, 'hex')
    })
    await connection.createStream().sendTotal(amount)
    await connection.end()
    return { address: connection.sourceAccount, sent: connection.totalSent, delivered: connection.totalDelivered }
  }
})

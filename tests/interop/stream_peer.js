'use strict'
// One end of an ilp-protocol-stream payment over its own ilp-plugin-btp, driven by JSON lines (see json_lines.js).

const BtpPlugin = require('ilp-plugin-btp')
const { createConnection, createServer } = require('ilp-protocol-stream')
const { say, serve } = require('./json_lines.js')

const received = []

serve({
  // Take whatever payments come; tells where to send them.
  async receive ({ url }) {
    const server = await createServer({ plugin: new BtpPlugin({ server: url }) })
    server.on('connection', (connection) => connection.on('stream', (stream) => {
      stream.setReceiveMax('18446744073709551615')
      stream.on('money', (amount) => received.push(amount))
      stream.once('end', () => say({ event: 'paid' }))
    }))
    const { destinationAccount, sharedSecret } = server.generateAddressAndSecret()
    return { address: server.serverAccount, destination: destinationAccount, secret: sharedSecret.toString('hex') }
  },
  // Tells the amount of each packet that was taken.
  async received () {
    return { amounts: received }
  },
  async pay ({ url, destination, secret, amount }) {
    const connection = await createConnection({
      plugin: new BtpPlugin({ server: url }),
      destinationAccount: destination,
      sharedSecret: Buffer.from(secret, 'hex')
    })
    await connection.createStream().sendTotal(amount)
    await connection.end()
    return { address: connection.sourceAccount, sent: connection.totalSent, delivered: connection.totalDelivered }
  }
})

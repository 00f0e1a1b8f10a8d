'use strict'
// Payments of today's wallets over an ilp-plugin-btp, driven by JSON lines (see json_lines.js): the receiver that Rafiki
// runs, @interledger/stream-receiver, and the sender @interledger/pay.

const BtpPlugin = require('ilp-plugin-btp')
const { deserializeIlpPrepare, serializeIlpReply } = require('ilp-packet')
const { fetch } = require('ilp-protocol-ildcp')
const { StreamServer } = require('@interledger/stream-receiver')
const { closeConnection, pay, setupPayment, startQuote } = require('@interledger/pay')
const { serve } = require('./json_lines.js')

const received = []

async function connect (url) {
  const plugin = new BtpPlugin({ server: url })
  await plugin.connect()
  return { plugin, ...await fetch((data) => plugin.sendData(data)) }
}

serve({
  // Take whatever payments come; tells where to send them.
  async receive ({ url, receipts }) {
    const { plugin, clientAddress, assetCode, assetScale } = await connect(url)
    const server = new StreamServer({ serverSecret: Buffer.alloc(32, 7), serverAddress: clientAddress })
    let total = 0
    plugin.registerDataHandler(async (data) => {
      const prepare = deserializeIlpPrepare(data)
      const money = server.createReply(prepare)
      if (!money.accept) return serializeIlpReply(money)
      received.push(prepare.amount)
      total += Number(prepare.amount)
      money.setTotalReceived(total)
      return serializeIlpReply(money.accept())
    })
    const { ilpAddress, sharedSecret } = server.generateCredentials({
      paymentTag: 'invoice 17',
      asset: { code: assetCode, scale: assetScale },
      receiptSetup: receipts ? { nonce: Buffer.alloc(16, 1), secret: Buffer.alloc(32, 2) } : undefined
    })
    return { address: clientAddress, destination: ilpAddress, secret: sharedSecret.toString('hex') }
  },
  // Tells the amount of each packet that was taken.
  async received () {
    return { amounts: received }
  },
  async pay ({ url, destination, secret, amount }) {
    const { plugin, clientAddress, assetCode, assetScale } = await connect(url)
    const to = await setupPayment({ plugin, destinationAddress: destination, sharedSecret: Buffer.from(secret, 'hex') })
    const options = { plugin, destination: to, sourceAsset: { code: assetCode, scale: assetScale } }
    const quote = await startQuote({ ...options, amountToSend: amount, slippage: 0.01, prices: { [assetCode]: 1 } })
    const { error, amountSent, amountDelivered } = await pay({ ...options, quote })
    await closeConnection(plugin, to)
    if (error) throw new Error(error)
    return { address: clientAddress, sent: String(amountSent), delivered: String(amountDelivered) }
  }
})

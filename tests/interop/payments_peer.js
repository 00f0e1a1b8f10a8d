'use strict'
// Payments of today's wallets, driven by JSON lines (see json_lines.js): the receiver that Rafiki runs,
// @interledger/stream-receiver, also in an earlier version, and the sender @interledger/pay.

const { deserializeIlpPrepare, serializeIlpReply } = require('ilp-packet')
const { fetch } = require('ilp-protocol-ildcp')
const { closeConnection, pay, setupPayment, startQuote } = require('@interledger/pay')
const { makePlugin } = require('./any_plugin.js')
const { serve } = require('./json_lines.js')

const received = []
let invoice

async function connect (where) {
  const plugin = makePlugin(where)
  await plugin.connect()
  return { plugin, ...await fetch((data) => plugin.sendData(data)) }
}

serve({
  // Take whatever payments come, with a version of the receiver; tells where to send one.
  async receive ({ url, port, receiver = '@interledger/stream-receiver', receipts }) {
    const { StreamServer } = require(receiver)
    const { plugin, clientAddress, assetCode, assetScale } = await connect({ url, port })
    const server = new StreamServer({ serverSecret: Buffer.alloc(32, 7), serverAddress: clientAddress })
    const totals = new Map()
    plugin.registerDataHandler(async (data) => {
      const prepare = deserializeIlpPrepare(data)
      const money = server.createReply(prepare)
      if (!money.accept) return serializeIlpReply(money)
      received.push(prepare.amount)
      const total = (totals.get(money.connectionId) || 0) + Number(prepare.amount)
      totals.set(money.connectionId, total)
      money.setTotalReceived(total)
      return serializeIlpReply(money.accept())
    })
    invoice = () => {
      const { ilpAddress, sharedSecret } = server.generateCredentials({
        paymentTag: 'invoice 17',
        asset: { code: assetCode, scale: assetScale },
        receiptSetup: receipts ? { nonce: Buffer.alloc(16, 1), secret: Buffer.alloc(32, 2) } : undefined
      })
      return { address: clientAddress, destination: ilpAddress, secret: sharedSecret.toString('hex') }
    }
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
  async pay ({ url, port, destination, secret, amount, slippage = 0.01 }) {
    const { plugin, clientAddress, assetCode, assetScale } = await connect({ url, port })
    const to = await setupPayment({ plugin, destinationAddress: destination, sharedSecret: Buffer.from(secret, 'hex') })
    const options = { plugin, destination: to, sourceAsset: { code: assetCode, scale: assetScale } }
    const quote = await startQuote({ ...options, amountToSend: amount, slippage, prices: { [assetCode]: 1 } })
    const { error, amountSent, amountDelivered } = await pay({ ...options, quote })
    await closeConnection(plugin, to)
    if (error) throw new Error(error)
    return { address: clientAddress, sent: String(amountSent), delivered: String(amountDelivered) }
  }
})

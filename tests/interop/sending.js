'use strict'
// The commands that send requests over a plugin.

const reversed = (data) => Buffer.from(data).reverse()

// Returns the commands; `plugin` returns the plugin of the moment.
const sending = (plugin) => ({
  async sendData ({ hex }) {
    return { hex: (await plugin().sendData(Buffer.from(hex, 'hex'))).toString('hex') }
  },
  // All at once, no two alike; each must come back reversed.
  async sendMany ({ count, size }) {
    const requests = Array.from({ length: count }, (_, number) => {
      const data = Buffer.alloc(size, number)
      data.writeUInt32BE(number)
      return data
    })
    const answers = await Promise.all(requests.map((data) => plugin().sendData(data)))
    return { matched: answers.filter((answer, number) => answer.equals(reversed(requests[number]))).length }
  }
})

module.exports = { reversed, sending }

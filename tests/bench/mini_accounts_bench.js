'use strict'
// ilp-plugin-mini-accounts 4.2.0 as the server that accounts.py measures this package's against.
//
//   node mini_accounts_bench.js FULFILL
//
// It prints {"port"} once bound, answers every request that reaches its data handler with the packet FULFILL, given in
// hex, and ends when its stdin does. The packages are those of ../interop (`npm ci` there).

const MiniAccounts = require('../interop/node_modules/ilp-plugin-mini-accounts')
const { onLoopback } = require('../interop/loopback_server.js')

async function serve (fulfill) {
  const { options, bound } = onLoopback()
  const info = { clientAddress: 'example.bench', assetScale: 9, assetCode: 'XRP' }
  const plugin = new MiniAccounts({ ...options, debugHostIldcpInfo: info })
  plugin.registerDataHandler(async () => fulfill)
  await plugin.connect()
  process.stdin.on('end', () => process.exit(0)).resume()
  process.stdout.write(JSON.stringify({ port: await bound }) + '\n')
}

serve(Buffer.from(process.argv[2], 'hex')).catch((error) => {
  process.stderr.write(`${error.stack}\n`)
  process.exit(1)
})

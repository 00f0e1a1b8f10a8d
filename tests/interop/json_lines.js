'use strict'
// Serves one Node process's commands by JSON lines: commands come on stdin, replies and events leave on stdout.
//
//   in   {"id": 1, "do": "listen", "token": "...", "port": 0}
//   out  {"id": 1, "ok": {"port": 43210}}   or   {"id": 1, "error": {"message": "...", "code": "F00", ...}}
//   out  {"event": "connect"}
//
// The process ends when stdin does, so that it cannot outlive whoever started it.

const readline = require('readline')

const say = (message) => process.stdout.write(JSON.stringify(message) + '\n')

// ilp-plugin-btp wraps a peer's BTP error as the JSON text of an Error's message.
function told (error) {
  try {
    const { code, name, triggeredAt, data } = JSON.parse(error.message)
    return { message: 'the peer answered with an error', code, name, triggeredAt, data }
  } catch (_) {
    return { message: String(error.message) }
  }
}

function serve (commands) {
  const lines = readline.createInterface({ input: process.stdin })
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

module.exports = { say, serve }

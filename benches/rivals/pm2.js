// pm2 by its own module, without its command line: `node pm2.js COUNT wait|go ARGV...` starts so many, one after
// another, and prints for each the seconds until it was started and, with `wait`, until it had exited.
const pm2 = require('pm2');
const [, , count, wait, command, ...args] = process.argv;
const script = require('child_process').execFileSync('which', [command]).toString().trim();
const call = (name, ...args) => new Promise((done, failed) => pm2[name](...args, (error, value) => error ? failed(error) : done(value)));
const since = began => (Number(process.hrtime.bigint() - began) / 1e9).toFixed(6);
(async () => {
  await call('connect', false);
  const bus = wait === 'wait' ? await call('launchBus') : null;
  for (let number = 0; number < Number(count); number++) {
    const name = `job_${process.pid}_${number}`;
    const exited = bus && new Promise(done => bus.on('process:event', event => event.event === 'exit' && event.process.name === name && done()));
    const began = process.hrtime.bigint();
    await call('start', { script, args, name, autorestart: false, interpreter: 'none' });
    const started = since(began);
    if (exited) await exited;
    console.log(started, since(began));
  }
  process.exit(0);
})();

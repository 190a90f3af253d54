// Read by node before NNI's manager (`node --require`). The manager would listen on every address, keep its list of
// experiments in the user's home, and outlive whoever started it; here it does none of these. Its arguments, of which one
// is the secret path of its page, come by the environment: command lines are for everybody on the machine to read.
"use strict";
const fs = require("fs");
const net = require("net");
const os = require("os");

const { socket, home, scratch, words } = JSON.parse(process.env.KDNAS_NNI_MANAGER);
delete process.env.KDNAS_NNI_MANAGER; // trials inherit the environment
process.argv.push(...words);

// The one socket that it may listen on is open already, on the loopback address.
let listening = false;
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (...options) {
  if (listening) throw new Error("kdnas lets NNI listen on one socket only");
  listening = true;
  return listen.call(this, { fd: socket }, options.find((option) => typeof option === "function"));
};

os.homedir = () => home;

// Standard input ends when the controller does, however it does: then nothing of the experiment stays, trials included.
process.stdin.on("error", () => {}).on("close", () => {
  fs.rmSync(scratch, { recursive: true, force: true });
  process.kill(-process.pid, "SIGKILL");
}).resume();

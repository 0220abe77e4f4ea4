// Asks the server, and reads what it sends as it comes.

const TOKEN = "makemoe-token";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// Only this tab keeps the token. In a link, it stands after #, which no server ever sees.
export function rememberToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

export function takeTokenFromAddress() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    rememberToken(token);
    history.replaceState(null, "", location.pathname);
  }
}

async function ask(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...options.headers, ...(token && { authorization: `Bearer ${token}` }) };
  let reply;
  try {
    reply = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server does not answer.");
  }
  if (!reply.ok) {
    const body = await reply.json().catch(() => null);
    throw new Refused(reply.status, body?.error?.message ?? `The server answers ${reply.status}.`);
  }
  return reply;
}

export async function about() {
  return (await ask("about")).json();
}

// Yields the chunks of a completion.
export async function* complete(fields, signal) {
  const reply = await ask("v1/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...fields, stream: true, experts: true, echo: true }),
    signal,
  });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, "The connection was lost.");
    });
    if (done) throw new Refused(0, "The connection was lost.");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(500, chunk.error.message);
      yield chunk;
    }
  }
}

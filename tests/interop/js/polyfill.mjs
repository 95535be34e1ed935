// What the packages take for granted since Node 22 and Node 20 lacks. Loaded first: `node --import ./polyfill.mjs`.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new this((first, second) => { resolve = first; reject = second })
  return { promise, resolve, reject }
}

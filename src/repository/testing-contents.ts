/** What a simulated file holds. */

export const PAGE_BYTES = 4096;

/** Contents by page; a page is never changed in place, so that copies share them. */
export class Contents {
  sizeBytes = 0;
  pages = new Map<number, Buffer>();

  copy(): Contents {
    const other = new Contents();
    other.sizeBytes = this.sizeBytes;
    other.pages = new Map(this.pages);
    return other;
  }

  read(bytes: Uint8Array, offset: number): number {
    const count = Math.max(0, Math.min(bytes.byteLength, this.sizeBytes - offset));
    for (let done = 0; done < count; ) {
      const at = offset + done;
      const within = at % PAGE_BYTES;
      const piece = Math.min(PAGE_BYTES - within, count - done);
      const page = this.pages.get((at - within) / PAGE_BYTES);
      if (page === undefined) bytes.fill(0, done, done + piece);
      else bytes.set(page.subarray(within, within + piece), done);
      done += piece;
    }
    return count;
  }

  write(bytes: Uint8Array, offset: number): void {
    for (let done = 0; done < bytes.byteLength; ) {
      const at = offset + done;
      const within = at % PAGE_BYTES;
      const number = (at - within) / PAGE_BYTES;
      const piece = Math.min(PAGE_BYTES - within, bytes.byteLength - done);
      const page = Buffer.from(this.pages.get(number) ?? Buffer.alloc(PAGE_BYTES));
      page.set(bytes.subarray(done, done + piece), within);
      this.pages.set(number, page);
      done += piece;
    }
    this.sizeBytes = Math.max(this.sizeBytes, offset + bytes.byteLength);
  }

  zero(offset: number, end: number): void {
    const last = Math.min(end, this.sizeBytes);
    for (let at = offset; at < last; ) {
      const within = at % PAGE_BYTES;
      const piece = Math.min(PAGE_BYTES - within, last - at);
      const number = (at - within) / PAGE_BYTES;
      const page = this.pages.get(number);
      if (piece === PAGE_BYTES) this.pages.delete(number);
      else if (page !== undefined) this.pages.set(number, Buffer.from(page).fill(0, within, within + piece));
      at += piece;
    }
  }

  truncate(sizeBytes: number): void {
    if (sizeBytes < this.sizeBytes) {
      this.zero(sizeBytes, Math.ceil(this.sizeBytes / PAGE_BYTES) * PAGE_BYTES);
      for (const page of [...this.pages.keys()]) if (page * PAGE_BYTES >= sizeBytes) this.pages.delete(page);
    }
    this.sizeBytes = sizeBytes;
  }

  nextData(offset: number, end: number): number {
    for (let at = offset - (offset % PAGE_BYTES); at < end; at += PAGE_BYTES)
      if (this.pages.has(at / PAGE_BYTES)) return Math.max(at, offset);
    return end;
  }
}

/** The picture to begin from, kept over a reload: too large for localStorage, so it lies in IndexedDB. Where the browser
 *  forbids that (private windows) it is not kept, and nothing else fails. */
import type { Start } from "./form.svelte";

const [NAME, SHELF, PLACE] = ["darkroom", "pictures", "start"];

function opened(): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    const asked = indexedDB.open(NAME, 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore(SHELF);
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

async function within<T>(mode: IDBTransactionMode, act: (shelf: IDBObjectStore) => IDBRequest<T>): Promise<T | undefined> {
  try {
    const base = await opened();
    return await new Promise<T>((resolve, reject) => {
      const asked = act(base.transaction(SHELF, mode).objectStore(SHELF));
      asked.onsuccess = () => resolve(asked.result);
      asked.onerror = () => reject(asked.error);
    }).finally(() => base.close());
  } catch {
    return undefined;
  }
}

export async function keepImage(start: Start | null): Promise<void> {
  await within("readwrite", (shelf) => (start ? shelf.put({ ...start }, PLACE) : shelf.delete(PLACE)) as IDBRequest<unknown>);
}

export async function keptImage(): Promise<Start | undefined> {
  return within<Start | undefined>("readonly", (shelf) => shelf.get(PLACE));
}

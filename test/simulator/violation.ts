/** Something that must always be true is not. */
export class Violation extends Error {
  override readonly name = 'Violation';
}

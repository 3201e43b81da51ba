export interface UpdateImageOptions { snapshot: string }
export interface UpdateImageResult { changedBlocks: number }
export async function updateImageFromSnapshot(_options: UpdateImageOptions): Promise<UpdateImageResult> {
  throw new Error('being written');
}

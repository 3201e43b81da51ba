/** The version that every command, the status JSON and the API report. */
export const VERSION = '0.1.0';

package org.apache.hadoop.crypto.key.kms.server;

import org.apache.hadoop.conf.Configuration;

/**
 * Stands in for the server's class where a test reloads ACLs by hand: a server in another process reloads by itself, a
 * second or so after the file has changed.
 */
public class KMSWebApp {
  private static final KMSACLs ACLS = new RemoteACLs();

  public static KMSACLs getACLs() {
    return ACLS;
  }

  private static final class RemoteACLs extends KMSACLs {
    RemoteACLs() {
      super(new Configuration(false));
    }

    @Override
    public synchronized void startReloader() {}

    @Override
    public synchronized void stopReloader() {}

    @Override
    void forceNextReloadForTesting() {}

    @Override
    public void run() {
      try {
        Thread.sleep(2500);
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
      }
    }
  }
}

package org.apache.hadoop.crypto.key.kms.server;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.HashMap;
import java.util.Map;
import org.apache.hadoop.conf.Configuration;

/**
 * Replaces the server's class in tests that reload ACLs. A server in another process reloads by itself, about a second
 * after the file has changed. claviger then writes a log line, so run waits for this line.
 */
public class KMSWebApp {
  private static final Map<String, Integer> SEEN = new HashMap<>(); // number of loads already seen, by file
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
        if (System.getProperty("kms.server.cmd").startsWith("java\n")) {
          Thread.sleep(2500); // the log of Hadoop's server does not show a reload
          return;
        }
        String file = System.getProperty("kms.config.dir") + "/kms-acls.xml";
        int seen = SEEN.getOrDefault(file, 0);
        int now = loads(file);
        for (long end = System.nanoTime() + 30_000_000_000L; now == seen && System.nanoTime() < end; now = loads(file)) {
          Thread.sleep(20);
        }
        SEEN.put(file, now);
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
      } catch (IOException e) {
        throw new UncheckedIOException(e);
      }
    }

    /** Returns how often the log of the servers says that a changed file was loaded. */
    private static int loads(String file) throws IOException {
      byte[] log = Files.readAllBytes(Paths.get(System.getProperty("kms.server.log")));
      int n = 0;
      for (String line : new String(log, StandardCharsets.UTF_8).split("\n")) {
        if (line.contains("ACLs were loaded again") && line.contains("file=" + file)) {
          n++;
        }
      }
      return n;
    }
  }
}

package org.apache.hadoop.crypto.key.kms.server;

import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.nio.file.StandardCopyOption;
import java.util.Map;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.security.ssl.SSLFactory;

/**
 * Runs the real Java KMS in its own process, with the options that the shim MiniKMS gives to a server. This checks the
 * test harness itself: Hadoop's tests must pass against Hadoop's server.
 */
public class ReferenceServer {
  public static void main(String[] args) {
    try {
      serve(args);
    } catch (Throwable t) {
      t.printStackTrace();
      Runtime.getRuntime().halt(1);
    }
  }

  private static void serve(String[] args) throws Exception {
    String dir = null;
    String ready = null;
    int port = 0;
    boolean tls = false;
    for (int i = 0; i < args.length; i++) {
      switch (args[i]) {
        case "--conf":
          dir = args[++i];
          break;
        case "--http-port":
          port = Integer.parseInt(args[++i]);
          break;
        case "--ready-file":
          ready = args[++i];
          break;
        case "--tls":
          tls = true;
          break;
        default:
          throw new IllegalArgumentException(args[i]);
      }
    }
    System.setProperty("kms.config.dir", dir);
    String krb5 = System.getenv("KRB5_CONFIG"); // the tests run their own KDC
    if (krb5 != null) {
      System.setProperty("java.security.krb5.conf", krb5);
    }
    Configuration conf = KMSConfiguration.getKMSConf();
    conf.set("hadoop.kms.http.host", "localhost");
    conf.setInt("hadoop.kms.http.port", port);
    conf.setBoolean("hadoop.kms.ssl.enabled", tls);
    Configuration ssl = SSLFactory.readSSLConfiguration(conf, SSLFactory.Mode.SERVER);
    if (tls) {
      Configuration file = new Configuration(false);
      file.addResource(new org.apache.hadoop.fs.Path("file://" + dir + "/ssl-server.xml"));
      for (Map.Entry<String, String> e : file) {
        ssl.set(e.getKey(), e.getValue());
      }
    }
    KMSWebServer server = new KMSWebServer(conf, ssl);
    server.start();
    Path part = Paths.get(ready + ".part");
    Files.write(part, (server.getKMSUrl() + "\n").getBytes());
    Files.move(part, Paths.get(ready), StandardCopyOption.ATOMIC_MOVE);
    server.join();
  }
}
